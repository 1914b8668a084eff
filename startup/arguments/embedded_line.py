"""Reads a command line or a `--config` file of the embedded engine by vLLM's rules, not by click's.

`serve_arguments.split` implements the rules. A flag's name may be replaced by an unambiguous abbreviation.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from base.json_depth import read_json
from base.json_form import json_form
from envs.redaction import hide_in_arguments
from startup.arguments.errors import InputError
from startup.arguments.screening import reject_references
from startup.arguments.supported import CONFIG
from startup.arguments.table import find_flag, option_of
from startup.settings.config_file import ConfigFile
from startup.settings.engine_line import EngineLine, with_keys
from startup.settings.serve_arguments import ParsedOption, split

_PROTECTING: Final = ("keys", "tls")
"""Roles of flags that a file may not give without a value, as from a template's empty variable."""


def read_line(parts: Iterable[ParsedOption], read_file: Callable[[str], ConfigFile] = ConfigFile.read) -> EngineLine:
    """Reads a command line, and settings of its `--config` file that neither it nor a variable gives."""
    line = parse_line(parts)
    if not (path := line.value(CONFIG.name)):
        return line
    in_file = {each.name: each for each in options_of_file(path, read_file) if each.flag and not each.flag.is_set}
    line.options = [*(in_file | {each.name: each for each in line.options}).values()]
    return line


def parse_line(parts: Iterable[ParsedOption]) -> EngineLine:
    """Parses a command line. A flag becomes one option with all values, and `arguments` with full names."""
    line = EngineLine(option_of)
    line.add(parts)
    line.join_keys()
    line.options = _one_of_each_flag(line.options)
    return line


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
    line = EngineLine(option_of)
    for key, value in settings.items():
        line.add(split(_arguments_of_setting(f"--{key}", value)))
        if line.faults:
            raise InputError(line.faults[0])
    line.join_keys()
    return _one_of_each_flag(line.options)


def _arguments_of_setting(name: str, value: Any) -> Iterator[str]:
    flag, is_negated = find_flag(name.partition(".")[0])
    if flag is CONFIG:
        raise InputError("a config file cannot name another one.")
    if value in (None, []) and flag.role in _PROTECTING:
        raise InputError(f"{name.removeprefix('--')} has no value, so nothing would be protected: give one.")
    if isinstance(value, bool) and flag.nargs == 0:
        yield flag.opposites[0] if value is is_negated else flag.name
    elif isinstance(value, list) and flag.nargs == "+":
        yield from (f"{flag.name}={item}" for item in value)
    elif isinstance(value, bool) and "off" in (flag.choices or ()):  # YAML reads `on` and `off` as bools
        yield f"{flag.name}={'on' if value else 'off'}"
    elif value is not None:
        yield f"{name}={json.dumps(value, default=str) if isinstance(value, bool | dict | list) else value}"


def _one_of_each_flag(options: Iterable[ParsedOption]) -> list[ParsedOption]:
    """Joins a flag's options. Extends a list, adds keys to an object, and otherwise takes the last option."""
    joined: dict[str, ParsedOption] = {}
    for option in options:
        assert option.flag is not None
        earlier, values = joined.get(option.name), option.values
        if option.keys:
            values = (_with_keys(option, (earlier and earlier.text) or ""),)
        elif earlier is not None and option.flag.nargs == "+":
            values = (*earlier.values, *values)
        joined[option.name] = ParsedOption.spelled(option.flag, values)
    return [*joined.values()]


def _with_keys(option: ParsedOption, whole: str) -> str:
    """Adds the keys of an option to the JSON object that was given as a whole."""
    shown = "".join(hide_in_arguments([whole]))
    try:
        merged = read_json(whole) if whole else {}
    except ValueError as err:
        raise InputError(f"{option.name}: {shown!r} is not JSON{json_form(whole) or f': {err}'}.") from err
    if not isinstance(merged, dict):
        raise InputError(f"{option.name}: {shown!r} is not a JSON object.")
    return with_keys(merged, read_json(option.values[0]))
