"""A known cause with its texts, and the cause of one failure, or a line of a log that may show it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, NamedTuple

from startup.errors import code_of

LLAMA_CPP_NAME: Final = "llama.cpp"
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


class Cause(NamedTuple):
    """Why vLLM has ended, or a line that may show it."""

    process: str
    """The process's label in the log, such as `EngineCore_DP0 pid=123`, or its role. Empty if unknown."""
    phase: str
    """The activity of the process, such as `while it loaded the model`. Empty if it is unknown."""
    text: str
    """The exception or the line that reports the end."""
    known: KnownCause | None
    line: int
    """The number of the text's line in the log, from 1. 0 if the text itself contains advice."""
    told: "Cause | None" = None
    """The nearest line before it that may say why it occurred."""
    is_mention: bool = False
    """Whether the cause is only named by this line, and no line shows that a process ended because of it."""
    is_waiting: bool = False
    """Whether this line reports that the process waits, and nothing in the log has ended it."""
    is_of_library_import: bool = False
    """Whether an installed module raised an exception while it was imported."""
    origin: str = ""
    """The package whose code raised the exception, or `LLAMA_CPP_NAME`. Empty if unknown."""
    given: frozenset[str] = frozenset()
    """The settings of this log as advice would write them, such as `--x`, `--x y` and `X=y`."""
    settings: tuple[str, ...] = ()
    """Flags and variables that this log sets, and without which the failure may not occur."""
    first_step: str = ""
    """Advice for this log alone. The cause's advice follows."""
    first_error: str = ""
    """The number and text of the log's first exception. Empty if `text` contains it."""
    version: str = ""
    """The version of vLLM. Empty if it is unknown, like `platform`, such as `rocm`."""
    platform: str = ""

    @property
    def is_stop(self) -> bool:
        """Whether a signal stopped the server, and nothing had failed before."""
        return self.known is not None and self.known.name == "stopped"

    @property
    def is_guess(self) -> bool:
        """Whether the line only looks like an error, or only says what the start has come to."""
        return (self.is_mention and self.known is None) or (self.is_waiting and self.is_weak)

    @property
    def is_general(self) -> bool:
        """Whether it has a known cause, and this cause is general."""
        return self.known is not None and self.known.is_general

    @property
    def is_weak(self) -> bool:
        """Whether another line may say more: the cause is unknown, general, or follows from many others."""
        return self.known is None or self.known.is_general or "weak" in self.known.tags
