"""Macros of the file of models: `${NAME}`, `${env.NAME}`."""

import re
from collections.abc import Collection, Mapping
from typing import Final

from envs import foreign
from envs.suggestion import did_you_mean

_MACRO: Final = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")
_ENVIRONMENT: Final = "env."
_MAX_TEXT: Final = 1 << 16
"""Characters of a text after its macros are replaced; each level of macros could double it."""


class MacroError(Exception):
    """A macro cannot be replaced."""


class Macros:
    """The texts that `${NAME}` stands for."""

    def __init__(self, texts: Mapping[str, object], kept: Collection[str] = ()) -> None:
        """
        Args:
            texts: by name.
            kept: macros that stay, such as PORT, which is known only when a model starts.
        """
        self._texts = texts
        self._kept = kept

    def expand(self, text: str) -> str:
        """Raises MacroError."""
        return self._expand(text, ())

    def _expand(self, text: str, within: tuple[str, ...]) -> str:
        expanded = _MACRO.sub(lambda match: self._value(match, within), text)
        if len(expanded) > _MAX_TEXT:
            raise MacroError(f"has more than {_MAX_TEXT} characters with its macros: shorten them")
        return expanded

    def _value(self, match: re.Match[str], within: tuple[str, ...]) -> str:
        name = match[1]
        if name.startswith(_ENVIRONMENT):
            variable = name.removeprefix(_ENVIRONMENT)
            if not foreign.is_set(variable):
                raise MacroError(f"{match[0]}: the environment variable {variable} is not set")
            return foreign.text_of(variable)
        if name in self._kept:
            return match[0]
        if name in within:
            circle = " -> ".join((*within[within.index(name) :], name))
            raise MacroError(f"the macros contain themselves: {circle}")
        if name not in self._texts:
            places = {"PID": ": it is known in cmdStop only", "PORT": ": it is known in cmd, proxy and env only"}
            hint = places.get(name) or did_you_mean(name, self._texts)
            raise MacroError(f"there is no macro {match[0]}{hint}")
        value = self._texts[name]
        return self._expand(str(value).lower() if isinstance(value, bool) else str(value), (*within, name))
