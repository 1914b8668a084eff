"""A known cause of a failure: the texts by which it is recognized, and the advice."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from startup.errors import code_of

ANYTHING: Final = "…"
"""Stands for any characters in a text. A leading `^` matches the start of a line, and a final `$` the end."""


@dataclass(frozen=True)
class KnownCause:
    """A cause that is recognized by texts in the output of programs."""

    name: str
    """The name in `vllm-cli explain --json` and `--list`."""
    title: str
    """A clause that says what is wrong, without a final period."""
    text: str
    """Texts by which the cause is recognized, with ` | ` between them. Empty if nothing searches for it."""
    advice: str
    where: Literal["exception", "hint", "end", "wait"] = "exception"
    """The lines in which the texts are searched for. For `exception`, these are exceptions. `hint` adds lines
    that explain an exception, `end` lines that report the end of a process, `wait` lines that report that a
    process still waits."""
    is_general: bool = False
    """Whether a hint, or another exception of the chain, is more informative than this cause."""
    phase: str = ""
    """The phase of the start in which the cause occurs. Empty if it varies. It is then read from the log."""

    @cached_property
    def texts(self) -> tuple[str, ...]:
        return tuple(filter(None, self.text.split(" | ")))

    @property
    def code(self) -> str:
        """The code at the end of the message of a start that failed for this cause."""
        return code_of(self.name)

    def matches(self, text: str) -> bool:
        """Whether `text` contains one of the texts. The time is linear in its length."""
        return any(parts[0] in text and _contains(text, parts, ends) for parts, ends in self._patterns)

    @cached_property
    def _patterns(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        """For each text, its parts between `ANYTHING`, and its marks `^` and `$` in one string."""
        return tuple(
            (
                tuple(text.strip("^$").split(ANYTHING)),
                ("^" if text[0] == "^" else "") + ("$" if text[-1] == "$" else ""),
            )
            for text in self.texts
        )


def _contains(text: str, parts: tuple[str, ...], ends: str) -> bool:
    if "^" in ends and not text.startswith(parts[0]):
        return False
    start = 0
    for part in parts[:-1]:
        at = text.find(part, start)
        if at < 0:
            return False
        start = at + len(part)
    if "$" in ends:
        return text.endswith(parts[-1]) and len(text) - len(parts[-1]) >= start
    return text.find(parts[-1], start) >= 0
