"""Reads the text for a custom tool from the arguments of the function that stands for it."""

import json
import re
from typing import Final

from server.apis.responses.tools import CUSTOM_INPUT

_HEAD: Final = re.compile(r'\s*\{\s*"' + CUSTOM_INPUT + r'"\s*:\s*"')
_HEX: Final = "[0-9a-fA-F]"
_COMPLETE: Final = re.compile(
    rf'(?:[^"\\]|\\[^u]|\\u(?![dD][89abAB]){_HEX}{{4}}|\\u[dD][89abAB]{_HEX}{{2}}\\u{_HEX}{{4}})*+'
)
"""Characters and whole escapes of a JSON text; the first half of a surrogate pair waits for the second."""


_MOST_HEAD: Final = 256
"""Characters before the text; arguments with more blanks are read when they are complete."""
_MOST_ESCAPE: Final = len(r"\ud83d\ude42")


class CustomInputReader:
    """Decodes `{"input": "…"}` as it arrives; arguments of any other form are the text as they are."""

    def __init__(self) -> None:
        self._arguments: list[str] = []
        self._rest = ""
        self._is_inside = False
        self._is_ended = False
        self._shown: list[str] = []

    def read(self, text: str) -> str:
        """The part of the tool's text that is certain by now."""
        self._arguments.append(text)
        if self._is_ended:
            return ""
        self._rest += text
        if not self._is_inside:
            head = _HEAD.match(self._rest)
            if head is None:
                self._is_ended = len(self._rest) > _MOST_HEAD
                return ""
            self._is_inside, self._rest = True, self._rest[head.end() :]
        found = _COMPLETE.match(self._rest)
        assert found is not None
        self._rest = self._rest[found.end() :]
        self._is_ended = self._rest.startswith('"') or len(self._rest) >= _MOST_ESCAPE
        return self._show(found[0])

    def finish(self) -> tuple[str, str]:
        """The last part, and the whole text.

        Malformed arguments may give a text that does not continue what was shown; it is repeated as a whole.
        """
        whole, shown = _decode("".join(self._arguments)), "".join(self._shown)
        return (whole[len(shown) :] if whole.startswith(shown) else whole), whole

    def _show(self, escaped: str) -> str:
        try:
            text = _without_surrogates(json.loads(f'"{escaped}"', strict=False))
        except ValueError:  # an escape that JSON does not have
            return ""
        self._shown.append(text)
        return text


def _decode(arguments: str) -> str:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    text = value.get(CUSTOM_INPUT) if isinstance(value, dict) else None
    return _without_surrogates(text) if isinstance(text, str) else arguments


def _without_surrogates(text: str) -> str:
    """Halves of surrogate pairs, which JSON can escape and UTF-8 cannot encode, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
