"""The cause of a failure as `find_cause` returns it, and the lines of a log that it quotes."""

import re
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from startup.reports.causes.failures import Raised
from startup.reports.causes.known_cause import KnownCause
from startup.reports.causes.table import LISTS, STOPPED

LLAMA_CPP_NAME: Final = "llama.cpp"
OF_WORKER: Final = "Worker failed with error"
"""The beginning of the engine core's message that quotes the error of a worker after its start."""
QUOTED: Final = re.compile(rf"{OF_WORKER} '(.{{1,600}})', please check the stack trace", re.DOTALL)
_TYPE: Final = re.compile(r" \[type=\w{0,60}(?:, (input_value=(?:[-.\d]{1,20}|None|True|False)), input_type=\w+\])?.*")
"""Matches what pydantic adds after a message. A text may be a secret, so only other values are shown."""
_POINTER: Final = "Search for `"
"""The beginning of torch's line that refers to documentation."""
_OTHER: Final = re.compile(r".*Warning: |[$#>] |.{0,80}\w@[\w.-]{1,60}[: ].{0,80}[$#]")
_LONGEST_QUOTE: Final = 1_000


@dataclass(frozen=True)
class Cause:
    """Why vLLM has ended, or a line outside of exceptions that may show the cause."""

    process: str
    """The process's label in the log, such as `EngineCore_DP0 pid=123`, or its role. Empty if unknown."""
    phase: str
    """The activity of the process, such as `while it loaded the model`. Empty if it is unknown."""
    text: str
    """The exception or the line that reports the end, shortened."""
    known: KnownCause | None
    line: int
    """The number of the text's line in the log, from 1. 0 if the text itself contains advice."""
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
        return self.known is STOPPED

    @property
    def is_guess(self) -> bool:
        """Whether the line only looks like an error, or only says what the start has come to."""
        return (self.is_mention and self.known is None) or (self.is_waiting and self.is_weak)

    @property
    def is_weak(self) -> bool:
        """Whether another line may say more: the cause is unknown, general, or follows from many others."""
        return self.known is None or self.known.is_general or "weak" in self.known.tags


def quote(raised: Raised, known: KnownCause | None) -> str:
    """The whole message of an exception. If it is too long, it begins with the line that shows the cause."""
    text = raised.text
    if quoted := QUOTED.search(text):
        return shorten(quoted[1])
    lines = [*takewhile(_is_of_message, text.splitlines())] or [text]
    matching = (line for line in reversed(text.splitlines()) if known and known.matches(line))
    line = next((each for each in matching if not each.startswith(_POINTER)), lines[0])
    lines += [line] if line not in lines else []
    if len(lines) == 1 and ": " not in line and raised.function:
        source = f": {raised.source}" if raised.source.startswith("assert ") else ""
        lines = [f"{line.rstrip(':')} in {raised.function}(){source}"]
    elif sum(map(len, lines)) > _LONGEST_QUOTE:
        del lines[: lines.index(line)]
    return shorten("\n".join(lines))


def _is_of_message(line: str) -> bool:
    """Whether a line of an exception's text belongs to its message, not to what programs write after it."""
    return bool(line) and not line.startswith(LISTS["after messages"]) and not _OTHER.match(line)


def shorten(text: str) -> str:
    """The text in one line, without what pydantic adds after the message."""
    text = " ".join(_TYPE.sub(r" \1", text).split())
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]} …"
