"""Each line of plans.txt: words of `serve`, and the settings or the error. Then what no line can express."""

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from router.words.router_words import read_several
from router.words.single_model import embedded_router, vllm_router
from server.terms.limits import flag_of
from startup.settings.config import VllmOptions
from startup.settings.serve_words import ServeWords
from startup.vllm_words import command_line
from startup.vllm_words.command_line import CommandLine
from startup.vllm_words.facts import VllmFacts, facts_of_flags
from startup.vllm_words.installed import InstalledVllm
from startup.words.arguments import Arguments
from startup.words.serve_command import choose_engine, read_start
from startup.words.supported import GROUPS
from startup.words.table import split_flags
from tests.startup.vllm import small_parser
from vllm_cli.commands.serve import serve

_FACTS = {"none": VllmFacts(), "recorded": VllmFacts(tuple(facts_of_flags(small_parser.build())))}
_TABLE = Path(__file__).with_name("plans.txt").read_text()


def _lines() -> Iterator[Any]:
    """Yields words and what is expected of them."""
    prefixes = [""]
    for line in filter(lambda line: line.strip() and line[0] != "#", _TABLE.replace("\n  ", " ").splitlines()):
        if line[0] == "[":
            prefixes = line.strip("[]").split(" | ")
            continue
        before, _, expected = line.partition(" => ")
        for words in (f"{prefix} {words.strip()}".strip() for prefix in prefixes for words in before.split(" | ")):
            yield pytest.param(words, expected.strip(), id=words)


def _plan_of(words: list[str]) -> Any:
    read = read_start(ServeWords(words))
    if read.topic is not None or read.start is None:
        return read_several(read.words) if read.topic is None else read
    if not read.start.is_behind_router:
        return read.start
    if isinstance(read.start, VllmOptions):
        return vllm_router(read.start, read.words)
    return embedded_router(read.start, read.words)


def _find(plan: Any, path: str) -> Any:
    """The value at a path such as `server.network.port`, in JSON.

    `kind` is the class of the plan, and `line` is the `CommandLine` of vLLM.
    """
    if path == "kind":
        return type(plan).__name__
    found = CommandLine.of(plan.words) if path.startswith("line.") else plan
    for name in path.removeprefix("line.").split("."):
        found = found[name] if isinstance(found, Mapping) else getattr(found, name)
    return json.loads(json.dumps(asdict(found) if is_dataclass(found) else found, default=_as_json))


def _as_json(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


def _settings(text: str) -> Iterator[tuple[str, Any]]:
    """Reads `path=JSON path=JSON …`."""
    while match := re.match(r"\s*([\w.-]+)=", text):
        value, end = json.JSONDecoder().raw_decode(text, match.end())
        yield match[1], value
        text = text[end:]
    assert not text.strip(), text


@pytest.mark.parametrize(("words", "expected"), [*_lines()])
def test_words_become_a_plan(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [word.replace("\\n", "\n") for word in shlex.split(words)]
    while given and re.match(r"[A-Z][A-Z_]+=", given[0]):
        monkeypatch.setenv(*given.pop(0).split("=", 1))
    if facts := os.environ.get("FACTS"):
        monkeypatch.setattr(command_line, "find_vllm", lambda: InstalledVllm("0.33.0", tmp_path))
        monkeypatch.setattr(command_line, "read_facts", lambda _: _FACTS[facts])
    for index, word in enumerate(given):
        before, has_file, text = word.partition("@")
        if has_file and before in ("", "--config="):
            given[index] = f"{before}serve.yaml"
            Path("serve.yaml").write_text(text)
    kind, text = expected[:1], expected[2:]
    try:
        plan = _plan_of(given)
    except (click.ClickException, ValueError) as err:
        message = err.format_message() if isinstance(err, click.ClickException) else str(err)
        assert kind == "!", message
        assert text in message
        assert (getattr(err, "exit_code", 2), "\n" in message) == (2, False)
        assert "has no effect" not in capsys.readouterr().err, "only the error is shown"
        return
    assert kind != "!", "is not rejected"
    if kind == "~":
        notices = capsys.readouterr().err
        assert notices.startswith(f"Notice: {text}") if text else not notices, notices
        return
    settings = dict(_settings(expected))
    assert {path: _find(plan, path) for path in settings} == settings


_PAGES = [(Path(__file__).parents[3] / "docs" / name).read_text() for name in ("api.md", "flags.md")]
DOCS = "".join(page.partition("\n## Limits\n")[2] for page in _PAGES)


def test_every_example_in_the_help_is_a_valid_command_line():
    examples = [line.strip() for line in (serve.help or "").splitlines() if line.strip().startswith("vllm-cli serve")]
    assert len(examples) >= 4
    for example in examples:
        read = read_start(ServeWords(shlex.split(example)[2:]))
        assert read.start or read_several(read.words)


@pytest.mark.parametrize("flag", GROUPS["Limits"], ids=lambda flag: flag.name)
def test_messages_and_docs_name_the_flag_of_the_field(flag):
    (path,) = flag.fields
    assert flag_of(path.removeprefix("limits.")) == flag.name
    assert f"`{flag.name} " in DOCS


@pytest.mark.parametrize("place", ["flag", "variable", "file", "nowhere"])
def test_notices_are_shown_in_the_format_of_the_log_and_the_start_continues(
    place, parse, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("VCLI_XYZZY", "1")
    words: tuple[str, ...] = ()
    if place == "flag":
        words = ("--log-format", "json")
    elif place == "variable":
        monkeypatch.setenv("VCLI_LOG_FORMAT", "json")
    elif place == "file":
        (tmp_path / "config.yaml").write_text("log-format: json\n")
        words = ("--config", str(tmp_path / "config.yaml"))
    assert parse("m", "--enforce-eager", *words).model.model == "m"
    shown = capsys.readouterr().err.splitlines()
    messages = [
        "VCLI_XYZZY is not a variable of vllm-cli.",
        "--enforce-eager has no effect: torch and transformers choose the kernels.",
    ]
    if place == "nowhere":
        assert shown == [f"Notice: {message}" for message in messages]
        return
    lines = [json.loads(line) for line in shown]
    assert [line["message"] for line in lines] == messages
    assert {(line["level"], line["role"], line["phase"]) for line in lines} == {("WARNING", "api", "command_line")}


@pytest.mark.parametrize("has_gpu", [True, False])
def test_the_share_of_gpu_memory_has_no_effect_without_a_gpu(has_gpu, parse, tmp_path, capsys, monkeypatch):
    device = tmp_path / "device"
    if has_gpu:
        device.touch()
    monkeypatch.setattr("startup.imports.torch_environment._GPU_DEVICES", (device,))
    parse("m", "--gpu-memory-utilization", "0.5")
    notice = "--gpu-memory-utilization 0.5 has no effect: there is no GPU"
    assert (notice in capsys.readouterr().err) is not has_gpu


@pytest.mark.parametrize(("is_there", "engine"), [(True, "vllm"), (False, "embedded")], ids=["installed", "missing"])
def test_auto_is_vllm_if_it_is_installed(is_there, engine, tmp_path, monkeypatch):
    if is_there:
        (tmp_path / "vllm").mkdir()
        (tmp_path / "vllm" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert choose_engine(ServeWords(["model"])) == engine


@pytest.mark.parametrize("value", ["-k", "--port", "--", "-", "a b", "", "=", "--api-key=x"])
def test_values_of_a_file_are_the_same_when_they_are_written_as_words(tmp_path, value):
    """A router writes a model's words for its server, and a supervisor those that it restarts."""
    file = tmp_path / "serve.yaml"
    file.write_text(json.dumps({"api-key": ["first", value], "served-model-name": ["a", "-b"], "seed": -1}))
    given = Arguments.read(split_flags(["m", "--config", str(file)]))
    again = Arguments.parse(split_flags(given.words))
    assert {name: each.values for name, each in again.flags.items()} == {
        name: each.values for name, each in given.flags.items() if name != "--config"
    }
    assert again.positionals == ["m"]
