"""Reads `starts.txt`: starts of vLLM, and what the preflight finds in them.

A line is `STAGE: WORDS => FINDINGS`. Words are split as by a shell. Words before MODEL may set variables
(`NAME=value`), values of the model's config.json (`%key=JSON`; null removes one), files in its folder
(`%name.json=text`; an empty text removes one), and files beside it (`%+name=text`, named as `{+name}`).
Names in `{}` are files and folders of `start_folders`. A finding is a severity and a part of the message,
which names the value and the fix.

Real vLLM is asked about the stages `parse`, `config` and `later`, in which it refuses the start, and `done`.
`unit` asks only the preflight. `plugin`, `first` and `newer` ask it about a vLLM with a plugin, about one
whose facts are not recorded yet, and about a release with which no rule was compared.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_VARIABLE: Final = re.compile(r"([A-Z][A-Z0-9_]+)=(.*)", re.DOTALL)
_CHANGE: Final = re.compile(r"%([+\w.]+)=(.*)", re.DOTALL)


class WrittenStart(NamedTuple):
    """A command line with variables and a changed model, and the expected findings."""

    text: str
    stage: str
    words: list[str]
    variables: dict[str, str]
    changes: dict[str, str]
    findings: list[tuple[str, str]]
    """Severity and a part of the message of each finding."""


def written_starts() -> Iterator[WrittenStart]:
    lines = (Path(__file__).parent / "starts.txt").read_text().splitlines()
    for line in (line for line in lines if line and not line.startswith("#")):
        stage, _, rest = line.partition(": ")
        start, _, found = rest.rpartition(" => ")
        findings = [finding.partition(": ")[::2] for finding in found.split(" ; ") if found != "ok"]
        yield WrittenStart(line, stage, *_split(start), findings)


def _split(start: str) -> tuple[list[str], dict[str, str], dict[str, str]]:
    words, variables, changes = shlex.split(start), {}, {}
    while words and (found := _VARIABLE.fullmatch(words[0]) or _CHANGE.fullmatch(words[0])):
        (changes if words.pop(0).startswith("%") else variables)[found[1]] = found[2].replace("\\n", "\n")
    return words, variables, changes
