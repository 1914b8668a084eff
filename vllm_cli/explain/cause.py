"""A known cause with its texts, and the cause of one failure, or a line of a log that may show it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Final, Literal, NamedTuple

from startup.errors import code_of

LLAMA_CPP_NAME: Final = "llama.cpp"
ANYTHING: Final = "…"
"""Stands for any characters in a text. A leading `^` matches the start of a line, and a final `$` the end."""

Where = Literal["exception", "hint", "end", "wait"]
_WHERE: Final[tuple[Where, ...]] = ("hint", "end", "wait")
_RANGE: Final = re.compile(r"(<|>=)(\d[\w.]*)")
_PART_OF_VERSION: Final = re.compile(r"\d+")


class Pattern(NamedTuple):
    """A text that a line may contain."""

    parts: tuple[str, ...]
    """The text's parts between `ANYTHING`."""
    longest: str
    """The longest part. A line without it need not be compared."""
    is_at_start: bool
    is_at_end: bool

    @classmethod
    def from_text(cls, text: str) -> "Pattern":
        parts = tuple(text.strip("^$").split(ANYTHING))
        longest = max(parts, key=len)
        return cls(parts, longest, text.startswith("^"), text.endswith("$"))

    def matches(self, text: str) -> bool:
        """Whether `text` has the parts one after the other. The first one begins no word in its middle.

        The time is linear in the length of the text.
        """
        if self.is_at_start and not text.startswith(self.parts[0]):
            return False
        start = find_word(text, self.parts[0])
        for part in self.parts[1:]:
            if start < 0:
                return False
            start = text.find(part, start)
            start = start + len(part) if start >= 0 else start
        return start >= 0 and (not self.is_at_end or self._ends(text))

    def _ends(self, text: str) -> bool:
        """Whether the text ends with the last part. The other parts are known to come before its end."""
        *others, last = self.parts
        end_of_others = text.find(self.parts[0]) + sum(map(len, others))
        return text.endswith(last) and len(text) - len(last) >= end_of_others


def find_word(text: str, word: str, *, is_whole: bool = False) -> int:
    """The end of the first place where `word` does not begin inside of another word, or -1.

    If `is_whole`, it does not end inside of another word either. Signs, blanks and `_` may stand anywhere.
    """
    start = text.find(word)
    while start >= 0:
        end = start + len(word)
        is_inside = start > 0 and text[start - 1].isalpha() and word[:1].isalpha()
        goes_on = is_whole and text[end : end + 1].isalpha() and word[-1:].isalpha()
        if not is_inside and not goes_on:
            return end
        start = text.find(word, start + 1)
    return -1


@dataclass(frozen=True, eq=False)
class KnownCause:
    """A cause that is recognized by texts in the output of programs."""

    name: str
    """The name in `vllm-cli explain --json` and `--list`."""
    title: str = ""
    """A clause that says what is wrong, without a final period."""
    texts: tuple[str, ...] = ()
    """Texts by which the cause is recognized. Empty if nothing searches for it, or `raised_in` is enough."""
    advice: str = ""
    tags: frozenset[str] = frozenset()
    """Further facts, which the table explains."""
    phase: str = ""
    """The phase of the start in which the cause occurs. Empty if it varies. It is then read from the log."""
    source: str = ""
    """A public thread with this cause, such as `vllm#2248`, or `own` for an error of vllm-cli."""
    raised_in: tuple[str, ...] = ()
    """Parts of `FILE FUNCTION()`, one of which raised the exception. Empty: raised anywhere."""
    not_raised_in: tuple[str, ...] = ()

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

    @property
    def is_of_place(self) -> bool:
        """Whether the place of an exception is enough to show this cause, whatever its text."""
        return bool(self.raised_in) and not self.texts

    @property
    def code(self) -> str:
        """The code at the end of the message of a start that failed for this cause."""
        return code_of(self.name)

    def matches(self, text: str) -> bool:
        """Whether `text` contains one of the texts. The time is linear in its length."""
        for pattern in self.patterns:  # noqa: SIM110 - a generator costs more than these comparisons
            if pattern.longest in text and pattern.matches(text):
                return True
        return False

    @cached_property
    def patterns(self) -> tuple[Pattern, ...]:
        return tuple(map(Pattern.from_text, self.texts))

    def fits_place(self, spots: Sequence[str]) -> bool:
        """Whether code in one of these places, written as in `raised_in`, may raise this. True if unknown."""
        if not spots:
            return "placed" not in self.tags
        is_excluded = any(part in spot for part in self.not_raised_in for spot in spots)
        is_named = any(part in spot for part in self.raised_in for spot in spots)
        return not is_excluded and (is_named or not self.raised_in)


def is_in_range(version: str, versions: str) -> bool:
    """Whether the version is in a range such as `>=0.9,<0.12`."""
    for sign, limit in _RANGE.findall(versions):
        is_below = _compare(version, limit) < 0
        if is_below != (sign == "<"):
            return False
    return True


def _compare(first: str, second: str) -> int:
    ones = map(int, _PART_OF_VERSION.findall(first)[:3])
    others = map(int, _PART_OF_VERSION.findall(second)[:3])
    for one, other in zip_longest(ones, others, fillvalue=0):
        if one != other:
            return one - other
    return 0


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
    is_reference: bool = False
    """Whether the cause is only named by this line, and no line shows that a process ended because of it."""
    is_waiting: bool = False
    """Whether this line reports that the process waits, and nothing in the log has ended it."""
    is_of_library_import: bool = False
    """Whether an installed module raised an exception while it was imported."""
    origin: str = ""
    """The package whose code raised the exception, or `LLAMA_CPP_NAME`. Empty if unknown."""
    place: str = ""
    """The file and function that raised the exception, below wrappers. Empty if unknown."""
    first_error: str = ""
    """The number and text of the log's first exception. Empty if `text` contains it."""
    is_embedded: bool = False
    """Whether the embedded engine has failed, which has only a part of vLLM's flags."""
    is_foreign: bool = False
    """Whether another program than a server of vLLM or the embedded engine wrote the log."""
    version: str = ""
    """The version of vLLM. Empty if it is unknown, like `platform`, such as `rocm`."""
    platform: str = ""

    @property
    def is_stop(self) -> bool:
        """Whether a signal stopped the server, and nothing had failed before."""
        return self.known is not None and self.known.name == "stopped"

    @property
    def is_unfinished(self) -> bool:
        """Whether the log ends during the start, without an error."""
        return self.known is not None and self.known.name == "start-not-finished"

    @property
    def is_guess(self) -> bool:
        """Whether the line only looks like an error, or only says what the start has come to."""
        return (self.is_reference and self.known is None) or (self.is_waiting and self.is_weak)

    @property
    def is_general(self) -> bool:
        """Whether it has a known cause, and this cause is general."""
        return self.known is not None and self.known.is_general

    @property
    def is_weak(self) -> bool:
        """Whether another line may say more: the cause is unknown, general, or follows from many others."""
        return self.known is None or self.known.is_general or "weak" in self.known.tags

    @property
    def is_unplaced(self) -> bool:
        """Whether this cause depends on the place of the exception, which the log does not tell."""
        return self.known is not None and bool(self.known.raised_in) and not self.place

    @property
    def certainty(self) -> Literal["proven", "possible"] | None:
        """How far the log shows the cause. None if it is unknown."""
        if self.known is None:
            return None
        is_open = self.is_weak or self.is_reference or self.is_waiting or self.is_unplaced
        return "possible" if is_open and not self.is_stop else "proven"
