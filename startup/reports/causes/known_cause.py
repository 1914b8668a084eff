"""A known cause: the texts by which it is recognized, and what to do."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from startup.ground.errors import code_of

ANYTHING: Final = "…"
"""In a text, stands for any characters. `^` and `$` at the ends of a text mean the ends of a line."""


@dataclass(frozen=True)
class KnownCause:
    """A cause that is recognized by texts of programs."""

    name: str
    """The name in `vllm-cli explain --json` and `--list`."""
    title: str
    """What is wrong. Without a period at the end."""
    texts: tuple[str, ...]
    advice: str
    where: Literal["exception", "hint", "end"] = "exception"
    """Where the texts occur. An `exception` is only in exceptions. A `hint` is also in lines that explain an
    exception, and an `end` also in lines that report the end of a process without an exception."""
    is_general: bool = False
    """Whether a hint, or another exception of the chain, is more informative."""
    phase: str = ""
    """The activity of vLLM when this happens. Empty if it varies, so that the log must show it."""

    @property
    def code(self) -> str:
        """The code that ends the message of a start that this cause has ended."""
        return code_of(self.name)

    def matches(self, text: str) -> bool:
        """Whether `text` contains one of the texts, in time linear in its length."""
        return any(parts[0] in text and _contains(text, parts, ends) for parts, ends in self._patterns)

    @cached_property
    def _patterns(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        """Each text's parts between its gaps, and whether the line must begin or end with the text."""
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
