"""Splits a command line or a `--config` file into flags by the rules of `vllm serve`, not by those of click.

`_` and `-` are the same in a flag's name, the name may be cut off where only one flag begins so, multi-letter
flags may have one dash, list flags take every word up to the next flag, `-O3` is a level, and JSON flags may
be written key by key.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from base.json_depth import read_json
from envs.redaction import hide_in_words
from startup.ground.config_variables import replace_variables
from startup.ground.serve_words import Given, split
from startup.words.errors import InputError
from startup.words.flag import Flag, Shape
from startup.words.param_types import HumanInt
from startup.words.supported import CONFIG
from startup.words.table import find_flag


@dataclass
class GivenFlag:
    """A flag with its values on one command line or in one file."""

    flag: Flag
    values: list[str]
    """`true` or `false` for a switch. The last value counts, except for lists."""

    @property
    def value(self) -> str | bool | list[str]:
        """What click converts."""
        if self.flag.shape is Shape.SWITCH:
            return self.values[-1] == "true"
        return self.values if self.flag.shape is Shape.LIST else self.values[-1]


@dataclass
class Arguments:
    """A parsed command line."""

    flags: dict[str, GivenFlag] = field(default_factory=dict)
    """By the flag's name, in the order of the command line."""
    positionals: list[str] = field(default_factory=list)
    greedy_flag: str | None = None
    """A list flag that took several words; the user may have meant one of them as MODEL."""

    @classmethod
    def parse(cls, words: Iterable[str]) -> "Arguments":
        """Raises InputError if a flag is unknown or lacks its value."""
        arguments = cls()
        _Parser(arguments).run(_split_level(words))
        return arguments

    def add(self, flag: Flag, values: Sequence[str]) -> None:
        """A repeated flag extends a list and replaces any other value."""
        given = self.flags.setdefault(flag.name, GivenFlag(flag, []))
        given.values = [*given.values, *values] if flag.shape is Shape.LIST else list(values)

    def last_value(self, name: str) -> str | None:
        """The value of a flag, None if it is not given."""
        given = self.flags.get(name)
        return given.values[-1] if given else None


class _Parser:
    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self.keyed: dict[str, dict[str, Any]] = {}

    def run(self, words: Iterable[str]) -> None:
        for given in split(words, _num_values):
            if given.flag:
                self._take_flag(given)
            else:
                self.arguments.positionals.extend(given.words[1:] if given.words[0] == "--" else given.words)
        for name, keyed in self.keyed.items():
            self._add_keyed(find_flag(name).flag, keyed)

    def _take_flag(self, given: Given) -> None:
        flag, is_negated = find_flag(given.flag)
        values = given.values
        if flag.shape is Shape.SWITCH:
            if values or given.keys:
                raise InputError(f"{given.flag} takes no value: write {given.flag} or {flag.opposite}.")
            values = ["false" if is_negated else "true"]
        elif not values and (given.keys or flag.shape is not Shape.OPTIONAL):
            raise InputError(f"Option {(given.name if given.keys else flag.name)!r} requires an argument.")
        if given.keys:
            merge(self.keyed.setdefault(flag.name, {}), nest(given.keys, values[0]))
            return
        if flag.shape is Shape.LIST and len(values) > 1:
            self.arguments.greedy_flag = flag.name
        self.arguments.add(flag, values or [""])

    def _add_keyed(self, flag: Flag, keyed: dict[str, Any]) -> None:
        whole = self.arguments.last_value(flag.name)
        shown = "".join(hide_in_words([whole or ""]))
        try:
            merged = read_json(whole) if whole else {}
        except ValueError as err:
            raise InputError(f"{flag.name}: {shown!r} is not JSON: {err}.") from err
        if not isinstance(merged, dict):
            raise InputError(f"{flag.name}: {shown!r} is not a JSON object.")
        merge(merged, keyed)
        self.arguments.add(flag, [json.dumps(merged)])


def _num_values(name: str) -> int | str | None:
    try:
        flag = find_flag(name).flag
    except InputError:
        return None
    return flag.num_values


def _split_level(words: Iterable[str]) -> Iterator[str]:
    """`-O3`, `-O=3` and `-O 3` are `--optimization-level 3`."""
    for word in words:
        if word.startswith("-O") and word != "-O":
            yield f"--optimization-level={word[2:].removeprefix('=')}"
        else:
            yield "--optimization-level" if word == "-O" else word


def nest(keys: str, text: str) -> dict[str, Any]:
    """`nest("a.b", "1")` is `{"a": {"b": 1}}`; a `+` after the last key makes a list of `text`'s items."""
    if keys.endswith("+"):
        keys = keys.removesuffix("+")
        nested: Any = [_parse(item) for item in text.split(",")]
    else:
        nested = _parse(text)
    for key in reversed(keys.split(".")):
        nested = {key: nested}
    return dict(nested)


def merge(into: dict[str, Any], update: dict[str, Any]) -> None:
    """Adds `update` to `into`: extends objects and lists, replaces anything else."""
    for key, new in update.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            merge(old, new)
        elif isinstance(old, list) and isinstance(new, list):
            old.extend(new)
        else:
            into[key] = new


def _parse(text: str) -> Any:
    try:
        return read_json(text)
    except ValueError:
        pass
    try:
        return HumanInt().convert(text, None, None)
    except click.BadParameter:
        return text


def read_config_file(path: Path) -> Arguments:
    """The file's settings as if they were flags; raises InputError if the file is not valid."""
    try:
        return Arguments.parse(word for key, value in _load(path).items() for word in _words(key, value))
    except InputError as err:
        raise InputError(f"{CONFIG.name} {path}: {err.message}") from err


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as err:
        raise InputError(f"cannot be read: {err.strerror}.") from err
    except UnicodeDecodeError as err:
        raise InputError("is not a text file.") from err
    replaced = replace_variables(text)
    reject_references(replaced.missing)
    settings = _parse_yaml(replaced.text)
    if not isinstance(settings, dict):
        raise InputError("must be a mapping of flag names to values.")
    return {str(key): value for key, value in settings.items()}


def reject_references(missing: Sequence[str], place: str = "") -> None:
    """Raises InputError for references to variables that are not set, if there are any."""
    if missing:
        remedy = "set it, or write a default as ${NAME:-default}; $${ stands for ${"
        raise InputError(f"{place}{'; '.join(missing)}: {remedy}.")


def _parse_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except (yaml.YAMLError, RecursionError) as err:
        raise InputError(f"is not YAML: {' '.join(str(err).split())}.") from err


def _words(key: str, value: Any) -> Iterator[str]:
    name = f"--{key}"
    flag = find_flag(name.partition(".")[0]).flag
    if flag is CONFIG:
        raise InputError("a config file cannot name another one.")
    if flag.name == "--detach":
        raise InputError("--detach is for the command line only.")
    if value is None:
        return
    if isinstance(value, bool):
        yield from _switch_words(name, value, is_switch=flag.shape is Shape.SWITCH)
    elif isinstance(value, list) and flag.shape is Shape.LIST:
        yield from (f"{name}={item}" for item in value)
    elif isinstance(value, dict | list):
        yield f"{name}={json.dumps(value)}"
    else:
        yield f"{name}={value}"


def _switch_words(name: str, value: bool, *, is_switch: bool) -> Iterator[str]:
    if not is_switch:
        yield f"{name}={json.dumps(value)}"
    elif value:
        yield name
    elif name.startswith("--no-"):
        yield f"--{name.removeprefix('--no-')}"
    else:
        yield f"--no-{name.removeprefix('--')}"
