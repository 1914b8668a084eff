"""Reads words as vLLM's `FlexibleArgumentParser` does: completes names, counts values, joins keys to JSON.

`preflight.flag_values` converts the values later. vLLM also rejects every word that is rejected here.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from base.wording import list_some
from envs.replacements import REPLACEMENTS
from envs.suggestion import did_you_mean
from startup.settings.flag import Flag, GivenFlag
from startup.settings.serve_words import Given, is_flag_like, split
from startup.storage.keyed_values import merge, nest
from startup.vllm_words.flags import Flags

_MAX_MATCHES: Final = 5


@dataclass
class Reading:
    """argparse's result for some words, and the faults that argparse would report."""

    known: Flags
    flags: list[GivenFlag] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """MODEL, and words that belong to no flag."""
    unknown: list[tuple[str, str]] = field(default_factory=list)
    """Unknown flags, each with its place as in `GivenFlag.where`."""
    problems: list[str] = field(default_factory=list)
    """Faults that make vLLM exit while it reads the words."""
    _keyed: dict[str, tuple[GivenFlag, dict[str, Any]]] = field(default_factory=dict)

    def add(self, parts: Iterable[Given], where: str = "") -> None:
        """Adds the flags and words that `split` has found."""
        for part in parts:
            if not part.flag:
                self.others += part.words[1:] if part.words[0] == "--" else part.words
            elif (flag := self._find(part, where)) is not None:
                self._add_flag(flag, part)

    def add_setting(self, name: str, value: Any, where: str) -> None:
        """Adds a setting of the file as words, as vLLM does. A setting that is `false` adds no word."""
        self.add(split(_words_of_setting(name, value), self.known.num_values), where)

    def join_keys(self) -> None:
        """Adds `--flag {"a": {"b": 1}, "c": 2}` for `--flag.a.b 1 --flag.c 2`, after all other flags."""
        self.flags += [flag._replace(values=(json.dumps(content),)) for flag, content in self._keyed.values()]

    def _find(self, part: Given, where: str) -> GivenFlag | None:
        name, values = part.flag, tuple(part.values)
        options = self.known.complete(name)
        if not options and name[:2] != "--" and self.known.complete(name[:2]) == [name[:2]]:  # such as -qawq
            options, values = [name[:2]], (part.words[0][2:],)
        if len(options) == 1 and (found := self.known.find(options[0])) is not None:
            return GivenFlag(found, values, options[0], where)
        if self.known.is_recorded and not options:
            self.unknown.append((name, where))
            return None
        if name in REPLACEMENTS and options:
            self._complain(f"vLLM has no flag {name}{did_you_mean(name, ())}", where)
        elif options:
            self._complain(f"{name} may stand for {list_some(options, _MAX_MATCHES)}: write the whole name", where)
        return GivenFlag(Flag((name,), nargs="?", is_optional=True), values, name, where)

    def _add_flag(self, flag: GivenFlag, part: Given) -> None:
        if part.keys:
            if not flag.values:
                self._complain(f"{part.name} needs a value", flag.where)
                return
            _, content = self._keyed.setdefault(part.flag, (flag, {}))
            merge(content, nest(part.keys, flag.values[0]))
            return
        if self.known.is_recorded and (problem := _count_problem(flag, part)) is not None:
            self._complain(f"{flag.name} {problem}", flag.where)
        self.flags.append(flag)

    def _complain(self, problem: str, where: str) -> None:
        self.problems.append(f"{where}: {problem}" if where else problem)


def _words_of_setting(name: str, value: Any) -> Iterator[str]:
    items = value if isinstance(value, list) else [json.dumps(value, default=str) if isinstance(value, dict) else value]
    if value is not False and items:
        yield f"--{name}"
        yield from () if value is True else map(str, items)


def _count_problem(flag: GivenFlag, part: Given) -> str | None:
    """Why argparse rejects the number of values. None if argparse accepts the number."""
    is_attached = len(part.words) == 1 and bool(flag.values)
    if flag.flag.nargs == 0:
        return f"ignored explicit argument {flag.values[0]!r}" if is_attached else None
    if flag.flag.nargs == "?" or is_attached or (flag.values and not is_flag_like(flag.values[0])):
        return None
    return "needs one argument" if flag.flag.nargs == 1 else "needs at least one argument"
