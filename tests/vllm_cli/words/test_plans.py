"""Each line of plans.txt: words of `serve`, and the settings or the error that they become."""

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
from startup.settings.config import VllmOptions
from startup.settings.serve_words import ServeWords
from startup.vllm_words import command_line
from startup.vllm_words.command_line import CommandLine
from startup.vllm_words.facts import VllmFacts, facts_of_flags
from startup.vllm_words.installed import InstalledVllm
from startup.words.serve_command import read_start
from tests.startup.vllm import small_parser

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
