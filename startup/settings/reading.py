"""Reads arguments into options by a table of flags, which is the embedded engine's or vLLM's."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from base.json_depth import read_json
from startup.settings.flag import parse_size
from startup.settings.serve_arguments import ParsedOption


class Reading:
    """What a command line and the settings of its file stand for.

    Args:
        option_of: the table. It returns the option for an argument with a flag, possibly with a fault. The
            option has no `flag` if there is none of this name.
    """

    def __init__(self, option_of: Callable[[ParsedOption], ParsedOption]) -> None:
        self._option_of = option_of
        self._options: list[ParsedOption] = []
        self._keyed: dict[str, tuple[ParsedOption, dict[str, Any]]] = {}
        self.others: list[str] = []
        """Arguments that belong to no flag, such as MODEL."""
        self.unknown: list[ParsedOption] = []
        """Options without a flag."""
        self.faults: list[str] = []

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
                self._options.append(option)
            elif option.values:
                _, content = self._keyed.setdefault(part.typed, (option, {}))
                merge(content, _nest(part.keys, option.values[0]))

    @property
    def options(self) -> list[ParsedOption]:
        """All options. Last comes `--flag {"a": {"b": 1}, "c": 2}` for `--flag.a.b 1 --flag.c 2`."""
        for option, content in self._keyed.values():
            option.values = (json.dumps(content),)
        return [*self._options, *(option for option, _ in self._keyed.values())]


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


def merge(into: dict[str, Any], update: dict[str, Any]) -> None:
    """Adds `update` to `into`. Extends JSON objects and lists, and replaces any other value."""
    for key, new in update.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            merge(old, new)
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
