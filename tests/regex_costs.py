"""Finds regular expressions whose cost may grow faster than the text: a check of their structure.

Of the checkers on PyPI, regexploit has had no release since 2021, and redoctor does not decide about most
patterns with two repetitions. This check is stricter than needed: it takes characters and order into account,
and not what the rest of a pattern excludes. An exception needs a reason (see `test_regex_costs`).
"""

import re
import re._compiler as compiler
import re._constants as op
import re._parser as parser
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

_ALPHABET = [chr(code) for code in range(256)] + ["\u2028", "中", "🙂"]
_MOST_PATHS = 3000
_GROUP_NAME = re.compile(r"\(\?P<\w+>")
"""`regex` allows the same name twice."""
_UNBOUNDED = 1025
"""A repetition that may match more often counts as unbounded."""


class _Item(NamedTuple):
    """One step of a path through a pattern."""

    characters: frozenset[str]
    """What its characters may be; empty for an assertion."""
    is_unbounded: bool = False
    is_optional: bool = False
    has_retries: bool = True
    """Whether it may give characters back."""


def faults(pattern: re.Pattern[Any] | Any, *, is_searched: bool = True) -> list[str]:
    """What may cost more than the text's length; empty for a simple pattern. Also for patterns of `regex`.

    A pattern that is not searched is only matched at one position.
    """
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    tree = parser.parse(
        _GROUP_NAME.sub("(?:", source), pattern.flags & (re.DOTALL | re.IGNORECASE | re.MULTILINE | re.VERBOSE)
    )
    ignores_case = bool(pattern.flags & re.IGNORECASE)
    found = list(_nested(tree))
    for path in _paths(list(tree), ignores_case):
        found += _overlaps(path)
        found += _restarts(path) if is_searched else ()
    return sorted(set(found))


def _nested(tree: Any, is_inside: bool = False) -> Iterator[str]:
    """Repetitions in repetitions that can be retried."""
    for kind, value in tree:
        is_repeat = kind in (op.MAX_REPEAT, op.MIN_REPEAT) and value[1] >= _UNBOUNDED
        if is_repeat and is_inside:
            yield "a repetition in a repetition"
        for part in _parts(kind, value):
            yield from _nested(part, is_inside or is_repeat)


def _parts(kind: Any, value: Any) -> list[Any]:
    if kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
        return [value[2]]
    if kind is op.SUBPATTERN:
        return [value[3]]
    if kind is op.BRANCH:
        return list(value[1])
    if kind in (op.ASSERT, op.ASSERT_NOT):
        return [value[1]]
    return [value] if kind is op.ATOMIC_GROUP else []


def _overlaps(path: Sequence[_Item]) -> Iterator[str]:
    """Two repetitions of the same characters with nothing else between them."""
    for index, first in enumerate(path):
        if not first.is_unbounded or not first.has_retries:
            continue
        for second in path[index + 1 :]:
            if second.is_unbounded and second.characters & first.characters:
                yield "two repetitions that can share characters"
            if second.characters and not second.is_optional and not second.characters & first.characters:
                break


def _restarts(path: Sequence[_Item]) -> Iterator[str]:
    """A repetition that can fail and can hold what it begins with: a search tries it from each of these."""
    begin = next((item for item in path if item.characters), None)
    for index, item in enumerate(path):
        can_fail = any(not later.is_optional for later in path[index + 1 :])
        if item.is_unbounded and can_fail and begin is not None and item.characters & begin.characters:
            yield "a repetition that a search can begin within"


def _paths(items: list[Any], ignores_case: bool) -> Iterator[list[_Item]]:
    found: list[list[_Item]] = [[]]
    for kind, value in items:
        ways = list(_ways(kind, value, ignores_case))
        found = [[*path, *way] for path in found for way in ways]
        assert len(found) <= _MOST_PATHS, "too many alternatives for this check"
    return iter(found)


def _ways(kind: Any, value: Any, ignores_case: bool) -> Iterator[list[_Item]]:
    """The sequences of items that one element of a pattern stands for."""
    if kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
        least, most, body = value
        if most >= _UNBOUNDED:
            characters = frozenset().union(*(i.characters for p in _paths(list(body), ignores_case) for i in p))
            yield [_Item(characters, True, least == 0, kind is not op.POSSESSIVE_REPEAT)]
            return
        yield from _paths(list(body), ignores_case)
        if least == 0:
            yield []
    elif kind is op.BRANCH:
        for branch in value[1]:
            yield from _paths(list(branch), ignores_case)
    elif kind is op.SUBPATTERN:
        yield from _paths(list(value[3]), ignores_case)
    elif kind is op.ATOMIC_GROUP:
        yield from _paths(list(value), ignores_case)
    elif kind is op.ASSERT and value[0] < 0:
        yield from _paths(list(value[1]), ignores_case)
    elif kind in (op.ASSERT, op.ASSERT_NOT, op.AT, op.GROUPREF):
        yield [_Item(frozenset())]
    else:
        yield [_Item(_characters(kind, value, ignores_case))]


def _characters(kind: Any, value: Any, ignores_case: bool) -> frozenset[str]:
    """Which characters of a small alphabet the element matches."""
    key = f"{kind} {value} {ignores_case}"
    if key not in _known:
        state = parser.State()
        state.flags, state.str = re.IGNORECASE if ignores_case else 0, ""
        one = compiler.compile(parser.SubPattern(state, [(kind, value)]), state.flags)
        _known[key] = frozenset(character for character in _ALPHABET if one.fullmatch(character))
    return _known[key]


_known: dict[str, frozenset[str]] = {}
