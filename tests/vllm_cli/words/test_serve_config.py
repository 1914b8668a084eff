"""What plans.txt cannot say of the words of `serve`: notices, the machine, docs."""

import json
import shlex
from pathlib import Path

import pytest

from router.words.router_words import read_several
from server.terms.limits import flag_of
from startup.settings.serve_words import ServeWords
from startup.words.arguments import Arguments
from startup.words.serve_command import choose_engine, read_start
from startup.words.supported import GROUPS
from startup.words.table import split_flags
from vllm_cli.commands.serve import serve

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
