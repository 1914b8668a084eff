"""Reads a command line or a `--config` file of the embedded engine by vLLM's rules, not by click's.

`serve_arguments.split` implements the rules. A flag's name may be replaced by an unambiguous abbreviation.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from base.json_depth import read_json
from base.json_form import json_form
from envs.redaction import hide_in_arguments
from startup.arguments.errors import InputError
from startup.arguments.supported import CONFIG
from startup.arguments.table import find_flag
from startup.settings.config_file import ConfigFile
from startup.settings.flag import Flag, merge, nest
from startup.settings.serve_arguments import CommandLine, ParsedOption, split

_PROTECTING: Final = ("keys", "tls")
"""Roles of flags that a file may not give without a value, as from a template's empty variable."""


def read_line(parts: Iterable[ParsedOption], read_file: Callable[[str], ConfigFile] = ConfigFile.read) -> CommandLine:
    """Reads a command line, and settings of its `--config` file that neither it nor a variable gives."""
    line = parse_line(parts)
    if not (path := line.value(CONFIG.name)):
        return line
    in_file = {each.name: each for each in options_of_file(path, read_file) if each.flag and not each.flag.is_set}
    options = in_file | {each.name: each for each in line.options}
    return CommandLine(line.pieces, [*options.values()], line.others, line.faults)


def parse_line(parts: Iterable[ParsedOption]) -> CommandLine:
    """Parses a command line. A flag becomes one option with all values, and `arguments` with full names."""
    parts, reading = [*parts], _Reading()
    others: list[str] = []
    faults: list[str] = []
    for part in parts:
        if part.typed:
            try:
                reading.take(part)
            except InputError as err:
                faults.append(err.message)
        else:
            others += part.arguments[1:] if part.arguments[0] == "--" else part.arguments
    return CommandLine(parts, reading.result(), others, faults)


def options_of_file(path: str, read_file: Callable[[str], ConfigFile] = ConfigFile.read) -> list[ParsedOption]:
    """Reads a file of settings that are named like flags. Raises InputError if the file is not valid."""
    file = read_file(path)
    try:
        if file.problem is not None:
            raise InputError(f"{file.problem}.")
        reject_references(file.missing)
        options = options_of_settings(file.settings)
    except InputError as err:
        raise InputError(f"{CONFIG.name} {path}: {err.message}") from err
    for option in options:
        option.where = file.place(option.name.removeprefix("--"))
    return options


def options_of_settings(settings: Mapping[str, Any]) -> list[ParsedOption]:
    """Reads settings whose names are flags without dashes. Raises InputError for an invalid setting."""
    reading = _Reading()
    for key, value in settings.items():
        reading.take_setting(f"--{key}", value)
    return reading.result()


class _Reading:
    """The options by name, in the order in which they were first given."""

    def __init__(self) -> None:
        self._options: dict[str, ParsedOption] = {}
        self._keyed: dict[str, dict[str, Any]] = {}

    def take_setting(self, name: str, value: Any) -> None:
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
            self.take(next(split([f"{name}={text}"])))

    def take(self, part: ParsedOption) -> None:
        flag, is_negated = find_flag(part.typed)
        values = part.values
        if flag.nargs == 0:
            if part.keys or "=" in part.arguments[0]:
                raise InputError(f"{part.typed} takes no value: write {part.typed} or {flag.opposites[0]}.")
            values = ["false" if is_negated else "true"]
        elif not values and (part.keys or flag.nargs != "?"):
            raise InputError(f"Option {(part.spelling if part.keys else flag.name)!r} requires an argument.")
        if part.keys:
            merge(self._keyed.setdefault(flag.name, {}), nest(part.keys, values[0]))
        else:
            self._add(flag, values or [""])

    def _add(self, flag: Flag, values: Sequence[str]) -> None:
        """Adds a flag. A repeated flag extends a list, and replaces any other value."""
        earlier = self._options.get(flag.name) if flag.nargs == "+" else None
        self._options[flag.name] = ParsedOption.spelled(flag, (*(earlier.values if earlier else ()), *values))

    def result(self) -> list[ParsedOption]:
        for name, keyed in self._keyed.items():
            given = self._options.get(name)
            whole = (given.text if given else None) or ""
            shown = "".join(hide_in_arguments([whole]))
            try:
                merged = read_json(whole) if whole else {}
            except ValueError as err:
                raise InputError(f"{name}: {shown!r} is not JSON{json_form(whole) or f': {err}'}.") from err
            if not isinstance(merged, dict):
                raise InputError(f"{name}: {shown!r} is not a JSON object.")
            merge(merged, keyed)
            self._add(find_flag(name).flag, [json.dumps(merged)])
        return [*self._options.values()]


def reject_references(missing: Sequence[str], place: str = "") -> None:
    """Raises InputError if there are references to variables that are not set."""
    if missing:
        remedy = "set it, or write a default as ${NAME:-default}; $${ stands for ${"
        raise InputError(f"{place}{'; '.join(missing)}: {remedy}.")
