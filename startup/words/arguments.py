"""Reads a command line or a `--config` file of the embedded engine by vLLM's rules, not by click's.

`serve_words.split` implements the rules. A flag's name may be replaced by an unambiguous abbreviation.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from base.json_depth import read_json
from base.json_form import json_form
from envs.redaction import hide_in_words
from startup.settings.config_file import ConfigFile
from startup.settings.flag import Flag, GivenFlag, GivenFlags, merge, nest
from startup.settings.serve_words import Given, split
from startup.words.errors import InputError
from startup.words.supported import CONFIG
from startup.words.table import find_flag

_PROTECTING: Final = ("keys", "tls")
"""Roles of flags that a file may not give without a value, as from a template's empty variable."""


@dataclass
class Arguments(GivenFlags):
    """A command line, alone or with the file of `--config`."""

    flags: dict[str, GivenFlag] = field(default_factory=dict)
    """Given flags by name, in the order of file and command line."""
    positionals: list[str] = field(default_factory=list)
    greedy_flag: str | None = None
    """A list flag that took several words. One of them may have been meant as MODEL."""
    faults: list[str] = field(default_factory=list)
    """Faults of single flags, if `parse` was told to collect them."""
    _keyed: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        parts: Iterable[Given],
        *,
        collects_faults: bool = False,
        read_file: Callable[[str], ConfigFile] = ConfigFile.read,
    ) -> "Arguments":
        """Reads a command line, and settings of its `--config` file that neither it nor a variable gives."""
        arguments = cls.parse(parts, collects_faults=collects_faults)
        if path := arguments.value(CONFIG.name):
            in_file = cls.of_file(path, read_file).flags.items()
            arguments.flags = {name: each for name, each in in_file if not each.flag.is_set} | arguments.flags
        return arguments

    @classmethod
    def parse(cls, parts: Iterable[Given], *, collects_faults: bool = False) -> "Arguments":
        """Parses the parts of a command line.

        Raises:
            InputError: a flag is unknown or lacks its value. With `collects_faults`, this is one of `faults`.
        """
        arguments = cls()
        for given in parts:
            if given.flag:
                try:
                    arguments._take(given)
                except InputError as err:
                    if not collects_faults:
                        raise
                    arguments.faults.append(err.message)
            else:
                arguments.positionals.extend(given.words[1:] if given.words[0] == "--" else given.words)
        return arguments._with_keyed()

    @classmethod
    def of_file(cls, path: str, read_file: Callable[[str], ConfigFile] = ConfigFile.read) -> "Arguments":
        """Reads a file of settings that are named like flags. Raises InputError if the file is not valid."""
        file = read_file(path)
        try:
            if file.problem is not None:
                raise InputError(f"{file.problem}.")
            reject_references(file.missing)
            arguments = cls.of_settings(file.settings)
        except InputError as err:
            raise InputError(f"{CONFIG.name} {path}: {err.message}") from err
        for name, given in arguments.flags.items():
            arguments.flags[name] = given._replace(where=file.place(name.removeprefix("--")))
        return arguments

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> "Arguments":
        """Reads settings whose names are flags without dashes. Raises InputError for an invalid setting."""
        arguments = cls()
        for key, value in settings.items():
            arguments._take_setting(f"--{key}", value)
        return arguments._with_keyed()

    @property
    def words(self) -> list[str]:
        """A command line with these words and settings, which needs no `--config`. MODEL comes first."""
        flags = (given for name, given in self.flags.items() if name != CONFIG.name)
        return [*self.positionals, *(word for given in flags for word in given.words)]

    def last(self, name: str) -> GivenFlag | None:
        return self.flags.get(name)

    def _take_setting(self, name: str, value: Any) -> None:
        flag, is_negated = find_flag(name.partition(".")[0])
        if flag is CONFIG:
            raise InputError("a config file cannot name another one.")
        if value in (None, []) and flag.role in _PROTECTING:
            raise InputError(f"{name.removeprefix('--')} has no value, so nothing would be protected: give one.")
        if isinstance(value, bool) and flag.nargs == 0:
            self._add(flag, [json.dumps(value is not is_negated)])
        elif isinstance(value, list) and flag.nargs == "+":
            for item in value:
                self._add(flag, [str(item)])
        elif isinstance(value, bool) and "off" in (flag.choices or ()):  # YAML reads `on` and `off` as bools
            self._add(flag, ["on" if value else "off"])
        elif value is not None:
            text = json.dumps(value, default=str) if isinstance(value, bool | dict | list) else str(value)
            self._take(next(split([f"{name}={text}"])))

    def _take(self, given: Given) -> None:
        flag, is_negated = find_flag(given.flag)
        values = given.values
        if flag.nargs == 0:
            if values or given.keys:
                raise InputError(f"{given.flag} takes no value: write {given.flag} or {flag.opposites[0]}.")
            values = ["false" if is_negated else "true"]
        elif not values and (given.keys or flag.nargs != "?"):
            raise InputError(f"Option {(given.name if given.keys else flag.name)!r} requires an argument.")
        if given.keys:
            merge(self._keyed.setdefault(flag.name, {}), nest(given.keys, values[0]))
            return
        if flag.nargs == "+" and len(values) > 1:
            self.greedy_flag = flag.name
        self._add(flag, values or [""])

    def _add(self, flag: Flag, values: Sequence[str]) -> None:
        """Adds a flag. A repeated flag extends a list, and replaces any other value."""
        given = self.flags.get(flag.name) if flag.nargs == "+" else None
        earlier = given.values if given is not None else ()
        self.flags[flag.name] = GivenFlag(flag, (*earlier, *values), flag.name)

    def _with_keyed(self) -> "Arguments":
        for name, keyed in self._keyed.items():
            whole = self.value(name)
            shown = "".join(hide_in_words([whole or ""]))
            try:
                merged = read_json(whole) if whole else {}
            except ValueError as err:
                raise InputError(f"{name}: {shown!r} is not JSON{json_form(whole or '') or f': {err}'}.") from err
            if not isinstance(merged, dict):
                raise InputError(f"{name}: {shown!r} is not a JSON object.")
            merge(merged, keyed)
            self._add(find_flag(name).flag, [json.dumps(merged)])
        return self


def reject_references(missing: Sequence[str], place: str = "") -> None:
    """Raises InputError if there are references to variables that are not set."""
    if missing:
        remedy = "set it, or write a default as ${NAME:-default}; $${ stands for ${"
        raise InputError(f"{place}{'; '.join(missing)}: {remedy}.")
