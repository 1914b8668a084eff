"""Reads arguments by an engine's table of flags, which is that of the embedded engine or vLLM's."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from base.json_depth import read_json
from startup.settings.flag import parse_size
from startup.settings.serve_arguments import CommandLine, ParsedOption


class EngineLine(CommandLine):
    """A command line, with the settings of its file, as an engine's table of flags reads them.

    Args:
        option_of: the table. It returns the option for an argument with a flag, possibly with a fault. The
            option has no `flag` if there is none of this name.
    """

    options: list[ParsedOption]
    others: list[str]
    faults: list[str]

    def __init__(self, option_of: Callable[[ParsedOption], ParsedOption]) -> None:
        super().__init__([], [], [])
        self.unknown: list[ParsedOption] = []
        """Flags that the table does not have."""
        self._option_of = option_of
        self._keyed: dict[str, tuple[ParsedOption, dict[str, Any]]] = {}

    def add(self, parts: Iterable[ParsedOption], where: str = "") -> None:
        """Adds the flags and arguments that `split` has found. A setting of the file has a place."""
        for part in parts:
            if not part.typed:
                self.others += part.arguments[1:] if part.arguments[0] == "--" else part.arguments
                continue
            option = self._option_of(part)
            option.where, option.keys = where, part.keys
            if option.fault:
                self.faults.append(f"{where}: {option.fault}" if where else option.fault)
            if option.flag is None:
                self.unknown.append(option)
            elif not part.keys:
                self.options.append(option)
            elif option.values:
                _, content = self._keyed.setdefault(part.typed, (option, {}))
                _merge(content, _nest(option.keys, option.values[0]))

    def join_keys(self) -> None:
        """Adds `--flag {"a": {"b": 1}, "c": 2}` for `--flag.a.b 1 --flag.c 2`, after all other options.

        Is called once, after the last `add`: JSON that grew with each option would take quadratic time.
        """
        for option, content in self._keyed.values():
            option.values = (json.dumps(content),)
            self.options.append(option)


def _nest(keys: str, text: str) -> dict[str, Any]:
    """`_nest("a.b", "1")` is `{"a": {"b": 1}}`, and `_nest("a+", "1,2")` is `{"a": [1, 2]}`."""
    if keys.endswith("+"):
        keys = keys.removesuffix("+")
        nested: Any = [_parse(item) for item in text.split(",")]
    else:
        nested = _parse(text)
    for key in reversed(keys.split(".")):
        nested = {key: nested}
    return dict(nested)


def with_keys(into: dict[str, Any], update: dict[str, Any]) -> str:
    """Adds `update` to `into`, and returns the JSON text."""
    _merge(into, update)
    return json.dumps(into)


def _merge(into: dict[str, Any], update: dict[str, Any]) -> None:
    """Extends JSON objects and lists, and replaces any other value."""
    for key, new in update.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            _merge(old, new)
        elif isinstance(old, list) and isinstance(new, list):
            old.extend(new)
        else:
            into[key] = new


def _parse(text: str) -> Any:
    for read in (read_json, parse_size):
        try:
            return read(text)
        except ValueError:
            continue
    return text
