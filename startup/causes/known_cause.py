"""What is known of a cause: the texts that tell it, and what to do."""

from dataclasses import dataclass
from typing import Final, Literal

ANYTHING: Final = "…"
"""In a text: any characters. `^` and `$` at its ends are the ends of a line."""


@dataclass(frozen=True)
class KnownCause:
    """A cause that is recognised by the texts that programs write."""

    name: str
    """The anchor on the page of causes."""
    title: str
    """What is wrong, without a period."""
    texts: tuple[str, ...]
    advice: str
    where: Literal["exception", "hint", "end"] = "exception"
    """Where the texts stand: in exceptions only; also in other lines, which explain an exception; or in
    lines that tell the end of a process without an exception."""
    is_general: bool = False
    """Whether a hint or another exception of the chain says more."""

    def matches(self, text: str) -> bool:
        """Whether one of the texts is in `text`, in time linear in its length."""
        return any(_contains(text, pattern) for pattern in self.texts)


def _contains(text: str, pattern: str) -> bool:
    start = 0
    is_line = pattern.endswith("$")
    for number, part in enumerate(pattern.strip("^$").split(ANYTHING)):
        at = text.find(part, start)
        if at < 0 or (not number and pattern.startswith("^") and at):
            return False
        start = at + len(part)
    return not is_line or start == len(text)
