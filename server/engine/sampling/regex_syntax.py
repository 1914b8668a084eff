"""Translates the regular expressions of requests for llguidance; they mean what they mean to vLLM's backend.

That is JavaScript's syntax: classes of digits, words and spaces are ASCII; but `.` includes line breaks,
anchors have no effect, and an unknown escape stands for its character. Lookarounds, backreferences and word
boundaries are kept: llguidance reports that it does not support them.
"""

import re

_ESCAPE = r"\\(?:u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|c[A-Za-z]|.)"
_OUTSIDE = re.compile(_ESCAPE + r"|\[\^?\]?|.", re.DOTALL)
_INSIDE = re.compile(_ESCAPE + r"|\[:\^?[a-z]{1,8}:\]|--|.", re.DOTALL)
"""Tokens outside and inside of a character class."""

_CLASSES = {
    "d": "[0-9]",
    "D": "[^0-9]",
    "w": "[a-zA-Z0-9_]",
    "W": "[^a-zA-Z0-9_]",
    "s": r"[\t-\r \xa0]",
    "S": r"[^\t-\r \xa0]",
}
_CONTROLS = {"0": r"\x00", "e": r"\x1b"}
_KEPT_ESCAPES = frozenset("abfnprtuvxBPUk123456789")
_ANCHORS = frozenset(["^", "$", r"\A", r"\z", r"\Z"])
_EMPTY = "(?:)"


def translate_regex(pattern: str, *, is_whole: bool = True) -> str:
    """The expression for llguidance.

    Args:
        pattern: the request's expression.
        is_whole: whether it describes a whole text; the pattern of a JSON schema is searched for.
    """
    parts: list[str] = []
    position, is_in_class = 0, False
    while (match := (_INSIDE if is_in_class else _OUTSIDE).match(pattern, position)) is not None:
        token, position = match.group(), match.end()
        if token in _ANCHORS and not is_in_class:
            parts.append(_EMPTY if is_whole else token.replace("Z", "z"))
        elif token[0] == "\\" and len(token) > 1:
            parts.append(_escape(token[1:], is_in_class=is_in_class))
        elif is_in_class:
            is_in_class = token != "]"
            parts.append("\\" + token if token in ("[", "--", "&", "~") else token)
        else:
            is_in_class = token[0] == "["
            parts.append("(?s:.)" if is_whole and token == "." else token)
    return "".join(parts)


def _escape(name: str, *, is_in_class: bool) -> str:
    if name[0] == "c" and len(name) == 2:
        return f"\\x{ord(name[1]) % 32:02x}"
    if name == "b" and is_in_class:
        return r"\x08"
    if name in _CLASSES or name in _CONTROLS:
        return _CLASSES.get(name) or _CONTROLS[name]
    is_kept = name[0] in _KEPT_ESCAPES or (name.isascii() and not name.isalnum() and name not in "<> ")
    return "\\" + name if is_kept else name
