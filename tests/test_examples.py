"""The commands in README, docs/ and help texts are accepted. Those of README's section Use are run."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import click
import pytest

from startup.arguments.embedded_line import parse_line
from startup.arguments.table import split_flags
from startup.settings.config import DEFAULT_MODEL_ID
from tests.e2e.server_process import ServerProcess
from tests.support.cli import python_output
from tests.support.marks import require_tool
from tests.support.ports import free_port
from tests.test_docs import PAGES, README
from tools.generated_docs import walk_commands
from vllm_cli.commands.of_vllm import VllmCommand
from vllm_cli.main import cli

_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LEFT_OUT = re.compile(r"(^|\s)#.*$|^.*….*$", re.MULTILINE)
"""Matches comments and lines with an ellipsis, which are no complete commands."""
_SEPARATORS = "|&;<>()\n"
_PROGRAM = "vllm-cli"
_ROOT = Path(__file__).parents[1]
_END_JOBS = "trap 'jobs -p | xargs -r kill' EXIT"
"""Kills background jobs, so that a failing command leaves no server behind, which would keep pipes open."""


def commands(page: str) -> Iterator[list[str]]:
    """Yields the arguments of each call in a page's examples, also of calls in quotes (`--cmd "…"`)."""
    for block in _BLOCK.findall(page):
        yield from _calls(_LEFT_OUT.sub("", block.replace("\\\n", " ")))


def _calls(text: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(text.replace("$!", "1"), posix=True, punctuation_chars=_SEPARATORS)
    lexer.whitespace, lexer.whitespace_split = " \t", True
    for is_separator, arguments in groupby(lexer, lambda argument: set(argument) <= set(_SEPARATORS)):
        statement = list(arguments)
        if is_separator or statement[:2] in (["docker", "build"], ["docker", "run"]):  # there it is an image's name
            continue
        for i, argument in enumerate(statement):
            if _PROGRAM in argument.split()[:-1]:
                yield from _calls(argument)
            elif argument == _PROGRAM and _PROGRAM not in statement[:i] and statement[i + 1 :]:
                yield statement[i + 1 :]


def _examples_of(command: click.Command) -> list[list[str]]:
    """The calls under `Examples:` in a command's help."""
    text = (command.help or "").partition("Example")[2].split("\n\n")[0]
    return list(_calls("\n".join(line.strip() for line in text.splitlines()[1:])))


_IN_HELP = {arguments: _examples_of(command) for arguments, command in walk_commands()}
_EXAMPLES = [
    pytest.param(arguments, id=f"{page.stem}: {' '.join(arguments)[:60]}")
    for page in (README, *PAGES)
    for arguments in commands(page.read_text(encoding="utf-8"))
]
_EXAMPLES += [
    pytest.param(arguments, id=f"help of {name}: {' '.join(arguments)[:60]}")
    for name, examples in _IN_HELP.items()
    for arguments in examples
]


@pytest.mark.parametrize("arguments", _EXAMPLES)
def test_the_program_accepts_the_words_of_an_example(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").mkdir()  # an unpacked wheel
    for argument in arguments:
        if re.fullmatch(r"[\w-]+\.[a-z]+", argument):  # a file that the example reads
            (tmp_path / argument).touch()
    if arguments[0] == "serve":
        assert parse_line(split_flags(arguments[1:])).faults == []
        return
    command, rest = _find_command(arguments)
    with command.make_context(arguments[0], rest):
        pass


@pytest.mark.parametrize(
    "arguments", [example for example in _EXAMPLES if {"--quick", "--model"}.issubset(example.values[0])]
)
def test_a_question_of_an_example_has_the_same_answer_each_time(arguments):
    """The default model, which needs no `--model`, answers greedily."""
    assert " --temperature 0 " in " ".join(arguments)


def test_the_help_of_each_command_or_of_its_members_has_an_example():
    with_example = [f"{arguments} " for arguments, examples in _IN_HELP.items() if examples]
    own = [name for name, command in walk_commands() if not isinstance(command, VllmCommand)]
    names = [name for name in own if " " not in name or name.startswith("bench ")]
    assert [name for name in names if not any(arguments.startswith(f"{name} ") for arguments in with_example)] == []


def test_an_unknown_flag_in_an_example_is_found():
    [arguments] = commands("```sh\nFOO=1 vllm-cli wait --prot 8000 && true\n```\n")
    assert arguments == ["wait", "--prot", "8000"]
    with pytest.raises(click.UsageError, match="--prot"):
        _find_command(arguments)[0].make_context("wait", arguments[1:])


def _find_command(arguments: list[str]) -> tuple[click.Command, list[str]]:
    """The command or subcommand that these arguments call, and the arguments after it."""
    command: click.Command | None = cli
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        command, arguments = command.get_command(click.Context(command), arguments[0]), arguments[1:]
    assert command is not None, "no such command"
    return command, arguments


@pytest.mark.thorough
@pytest.mark.parametrize("is_warm", [False, True], ids=["cold", "beside a standby"])
def test_the_commands_for_newcomers_work(is_warm, tmp_path):
    commands = _block(_ROOT / "README.md", "Use", "sh")
    if is_warm:
        commands = f"vllm-cli standby --detach\n{commands}vllm-cli standby stop\n"
    require_tool("curl")
    port = free_port()
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    shell = subprocess.Popen(
        ["bash", "-euxo", "pipefail", "-c", f"{_END_JOBS}\n{commands.replace('8000', str(port))}wait\n"],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_RUNTIME_DIR": str(runtime),
            "VCLI_ENGINE": "embedded",
            "VCLI_STANDBY": "auto",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        answers, log = shell.communicate(timeout=300)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGTERM)
    assert shell.returncode == 0, answers + log
    assert answers.count("The capital of France is Paris.") == commands.count("What is the capital of France?") > 0
    assert ("warm start: forked from the standby" in log) == is_warm


@pytest.mark.thorough
def test_the_python_example_works_with_a_key():
    key = "k-from-python"
    with ServerProcess([DEFAULT_MODEL_ID, "--engine", "embedded", "--api-key", key]) as server:
        example = _block(_ROOT / "docs" / "clients.md", "From Python", "python").replace("8000", str(server.port))
        output = python_output(example, environment={"VLLM_API_KEY": key})
    assert output == "The capital of France is Paris.\n"


def _block(page: Path, title: str, language: str) -> str:
    """The code of the only block in a section, or in the text below the page's title."""
    section = page.read_text(encoding="utf-8").partition(f"# {title}\n")[2].partition("\n## ")[0]
    [block] = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return block
