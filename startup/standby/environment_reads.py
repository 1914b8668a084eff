"""Decides whether a template's imports would have run the same under another environment.

A module that reads a variable on import keeps what it read, and so do C libraries and the interpreter when
they are loaded. A start whose environment differs in such a variable must be cold, unless the variable is
applied after the fork or has no lasting effect. Imports also set variables; a forked process needs these.
"""

from collections.abc import Mapping

from startup.standby.environment_recorder import EnvironmentAccesses
from startup.standby.known_variables import (
    CORRECTABLE_VALUES,
    LOAD_TIME_NAMES,
    LOAD_TIME_PREFIXES,
    WITHOUT_EFFECT,
    WITHOUT_EFFECT_PREFIXES,
)
from startup.standby.locale_variables import LOCALE_NAMES, why_other_encoding


class EnvironmentReads:
    """What a template's imports have read and set; created in the template, asked in each forked child."""

    def __init__(self, environment: Mapping[str, str], accesses: EnvironmentAccesses) -> None:
        """Takes the environment that the user gave to the standby, and what was recorded on import."""
        self._environment = dict(environment)
        self._accesses = accesses

    def why_cold(self, environment: Mapping[str, str]) -> str | None:
        """The first variable that cannot be corrected in a fork, as a reason in words; None if there is none.

        The reason has no values: they may be secrets.
        """
        before = self._environment
        for name in sorted({*environment, *before}):
            value = environment.get(name)
            if value != before.get(name) and (reason := self._why_not(name, before.get(name), value)) is not None:
                return f"{name} differs, {reason}"
        return why_other_encoding(before, environment)

    def resulting_environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """A start's environment as it would be after the imports, which set variables themselves."""
        result = dict(environment)
        for name, value in self._accesses.written.items():
            is_default = name in self._accesses.names  # set because of what was read before
            if is_default and environment.get(name) != self._environment.get(name):
                continue
            if value is None:
                result.pop(name, None)
            else:
                result[name] = value
        return result

    def changed(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The resulting variables that differ from the template's; a removed variable is empty."""
        before = self.resulting_environment(self._environment)
        after = self.resulting_environment(environment)
        names = {name for name in {*after, *before} if after.get(name) != before.get(name)}
        return {name: after.get(name, "") for name in sorted(names)}

    def _why_not(self, name: str, before: str | None, value: str | None) -> str | None:
        if name in WITHOUT_EFFECT or name in LOCALE_NAMES or name.startswith(WITHOUT_EFFECT_PREFIXES):
            return None
        is_read = name in self._accesses.names
        if (is_correctable := CORRECTABLE_VALUES.get(name)) is not None:
            return None if is_correctable(before, value) else "and its value cannot be applied to loaded libraries"
        if name in LOAD_TIME_NAMES or name.startswith(LOAD_TIME_PREFIXES):
            return "which libraries read when they are loaded"
        return "which was read on import" if is_read else None
