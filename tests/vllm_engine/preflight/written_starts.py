"""Reads `starts.yaml`: starts of vLLM, and what the preflight finds. The head of the file explains it."""

import re
import shlex
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from tests.support.data_files import read_yaml

_VARIABLE: Final = re.compile(r"([A-Z][A-Z0-9_]+)=(.*)", re.DOTALL)

Stage = Literal["parse", "config", "later", "done", "unit", "plugin", "first", "newer"]


class WrittenStart(msgspec.Struct, forbid_unknown_fields=True, dict=True, rename={"written": "arguments"}):
    """A command line with variables and a changed model, and the expected findings."""

    written: str
    stage: Stage
    findings: list[dict[Literal["error", "warning", "info"], str]]
    config: dict[str, Any] = {}
    files: dict[str, str | None] = {}
    beside: dict[str, str] = {}

    @property
    def text(self) -> str:
        """The name of the test."""
        changes = {**self.config, **self.files, **self.beside}
        return f"{self.stage}: {self.written} {changes or ''}".strip()

    @cached_property
    def arguments(self) -> list[str]:
        return shlex.split(self.written)[len(self.variables) :]

    @cached_property
    def variables(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for argument in shlex.split(self.written):
            if (variable := _VARIABLE.fullmatch(argument)) is None:
                break
            found[variable[1]] = variable[2]
        return found

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Severity and a part of the message of each finding."""
        return [pair for finding in self.findings for pair in finding.items()]


def written_starts() -> list[WrittenStart]:
    return read_yaml(Path(__file__).with_name("starts.yaml"), WrittenStart)
