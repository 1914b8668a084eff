"""A known cause of a failure, with the texts by which it is recognized, and lines of a log that show one."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, NamedTuple

from startup.errors import code_of

ANYTHING: Final = "…"
"""Stands for any characters in a text. A leading `^` matches the start of a line, and a final `$` the end."""
Pattern = tuple[tuple[str, ...], str]
"""A text's parts between `ANYTHING`, and its marks `^` and `$` in one string."""

Where = Literal["exception", "hint", "end", "wait"]
_WHERE: Final[tuple[Where, ...]] = ("hint", "end", "wait")


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
    tags: frozenset[str] = frozenset()
    """Further facts, which the table explains."""
    phase: str = ""
    """The phase of the start in which the cause occurs. Empty if it varies. It is then read from the log."""
    source: str = ""
    """A public thread with this cause, such as `vllm#2248`, or `own` for an error of vllm-cli."""

    @property
    def where(self) -> Where:
        """The lines in which the texts are searched for.

        For `exception`, these are exceptions. `hint` adds lines that explain an exception, `end` lines that
        report the end of a process, `wait` lines that report that a process still waits.
        """
        return next((where for where in _WHERE if where in self.tags), "exception")

    @property
    def is_general(self) -> bool:
        """Whether a hint, or another exception of the chain, is more informative than this cause."""
        return "general" in self.tags

    @cached_property
    def texts(self) -> tuple[str, ...]:
        return tuple(filter(None, self.text.split(" | ")))

    @property
    def code(self) -> str:
        """The code at the end of the message of a start that failed for this cause."""
        return code_of(self.name)

    def matches(self, text: str) -> bool:
        """Whether `text` contains one of the texts. The time is linear in its length."""
        return any(pattern[0][0] in text and self.has(text, pattern) for pattern in self.patterns)

    @cached_property
    def patterns(self) -> tuple[Pattern, ...]:
        return tuple(
            (
                tuple(text.strip("^$").split(ANYTHING)),
                ("^" if text[0] == "^" else "") + ("$" if text[-1] == "$" else ""),
            )
            for text in self.texts
        )

    @staticmethod
    def has(text: str, pattern: Pattern) -> bool:
        """Whether `text` contains the parts of the pattern one after the other, at its marks `^` and `$`."""
        parts, ends = pattern
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


class Sign(NamedTuple):
    """A line outside of exceptions that shows or may show a cause."""

    process: str
    phase: str
    text: str
    known: KnownCause | None
    line: int
    told: "Sign | None" = None
    """The nearest line before it that may say why it occurred."""

    @property
    def is_general(self) -> bool:
        return self.known is not None and self.known.is_general
