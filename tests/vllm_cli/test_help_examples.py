"""Every command's help has examples with flags that exist."""

import re
import shlex

import click
import pytest

from vllm_cli.commands.bench import BENCHMARKS
from vllm_cli.flags.table import is_flag
from vllm_cli.lazy_group import load_command
from vllm_cli.main import COMMANDS, cli

_TAKE_SERVE_FLAGS = ("serve", "run-batch", "bake")
_HELP = ("-h", "--help")


@pytest.mark.parametrize("entry", (*COMMANDS, *BENCHMARKS), ids=lambda entry: entry.target)
def test_the_help_has_examples_with_flags_that_exist(entry) -> None:
    command = load_command(entry)
    commands = command.commands.values() if isinstance(command, click.Group) and command.commands else [command]
    if isinstance(command, click.Group) and command.invoke_without_command:
        commands = [command, *commands]
    examples = [example for one in commands for example in _examples(one)]
    assert examples, f"{entry.name} --help has no example"
    for words in map(_own_words, examples):
        _check(words)


def _examples(command: click.Command) -> list[str]:
    """The lines under `Examples:` that call the program."""
    _, _, text = (command.help or "").partition("Examples:")
    return [line.strip() for line in text.split("\n\n")[0].splitlines() if "vllm-cli" in line]


def _own_words(line: str) -> list[str]:
    """The words from the program's name to the next operator of the shell."""
    return shlex.split(re.split(r"[|&;<>)']", line[line.index("vllm-cli") :])[0])


def _check(words: list[str]) -> None:
    program, *rest = words
    assert program == "vllm-cli"
    command: click.Command = cli
    names = []
    with click.Context(cli) as ctx:
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            names.append(rest.pop(0))
            found = command.get_command(ctx, names[-1])
            assert found is not None, names
            command = found
    options = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    for word in rest:
        if word.startswith(f"{program} "):  # in quotes: the command that a benchmark starts
            _check(word.split())
        name = word.partition("=")[0]
        if re.fullmatch(r"--?[a-z][\w.-]*", name) and name not in _HELP:
            assert name in options or (names[0] in _TAKE_SERVE_FLAGS and is_flag(name)), f"{names}: {name}"
