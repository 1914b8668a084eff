"""Reads which models exclude each other (`groups`, llama-swap's `matrix`), and which are preloaded."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, TypeAlias

from base.wording import list_some
from envs.suggestion import did_you_mean
from router.model_entry import ModelEntry
from router.models_file.document import Findings, KeyPath, show


@dataclass
class _Group:
    name: str
    members: list[str] = field(default_factory=list)
    swap: bool = True
    exclusive: bool = True
    persistent: bool = False


class Exclusions(NamedTuple):
    """The part of the file that decides which models must not run together."""

    kind: str
    """`groups` or `matrix`."""
    path: KeyPath
    content: Mapping[str, Any]


def find_exclusions(document: Mapping[str, Any], findings: Findings) -> Exclusions:
    """Finds this part at the top level or below `routing`, in which the key `use` can choose the kind."""
    router = (document.get("routing") or {}).get("router") or {}
    settings = router.get("settings") or {}
    given = [Exclusions(kind, (kind,), document[kind]) for kind in _KINDS if document.get(kind)]
    below = [Exclusions(kind, (*_SETTINGS, kind), settings[kind]) for kind in _KINDS if settings.get(kind)]
    if given and below:
        findings.fault(below[0].path, f"must not be given beside {given[0].kind} at the top level: use one of the two")
    if len(given) > 1:
        findings.fault(("matrix",), "must not be given beside groups: use one of the two")
    used = "matrix" if router.get("use") == "matrix" else "groups"
    below = [each for each in below if each.kind == used]
    found = [*given, *below]
    return found[0] if found else Exclusions("groups", ("groups",), {})


_KINDS: Final = ("groups", "matrix")
_SETTINGS: Final = ("routing", "router", "settings")


def apply_groups(
    groups: Mapping[str, Mapping[str, Any]], path: KeyPath, entries: Mapping[str, ModelEntry], findings: Findings
) -> dict[str, ModelEntry]:
    """Sets `excludes` of all models by the groups. Returns the models.

    As in llama-swap, only one of the commands of other servers that are in no group runs at a time. Only
    memory limits our own models without a group.
    """
    known = list(_checked_groups(groups, path, entries, findings))
    grouped = {member for group in known for member in group.members}
    commands = {name for name, entry in entries.items() if entry.foreign and entry.foreign.arguments}
    others = [name for name in entries if name in commands and name not in grouped]
    if len(others) > 1 and not groups:
        findings.notice(
            ("models",),
            f"{list_some(others)} run one at a time, as the memory that such commands need is unknown. To let them run "
            "together, put them into a group with swap: false and exclusive: false",
        )
    known.append(_Group("", others, exclusive=bool(groups)))
    kept = {member for group in known if group.persistent for member in group.members}
    kept |= {entry.name for entry in entries.values() if entry.pinned}
    result = dict(entries)
    for group in known:
        outside = set(entries) - set(group.members) - kept if group.exclusive else set()
        if not group.name:
            outside &= grouped
        for name in group.members:
            inside = set(group.members) - {name} if group.swap else set()
            result[name] = replace(entries[name], excludes=frozenset(outside | inside))
    _check_pinned(known, entries, findings)
    return result


def _checked_groups(
    groups: Mapping[str, Mapping[str, Any]], path: KeyPath, entries: Mapping[str, ModelEntry], findings: Findings
) -> Iterator[_Group]:
    group_of: dict[str, str] = {}
    for name, keys in groups.items():
        rules = {key: keys[key] for key in ("swap", "exclusive", "persistent") if key in keys}
        group = _Group(name, **rules)
        for number, named in enumerate(keys.get("members", ())):
            place = (*path, name, "members", number)
            member = _named(named, place, entries, findings)
            if member in group_of:
                findings.fault(place, f"{show(named)} is already in groups.{group_of[member]}: name it in one group")
            elif member is not None:
                group_of[member] = name
                group.members.append(member)
        yield group


def _named(name: str, path: KeyPath, entries: Mapping[str, ModelEntry], findings: Findings) -> str | None:
    """The model with this name or alias. An unknown name is a fault, or a notice in a file for llama-swap."""
    if name in entries:
        return name
    for entry in entries.values():
        if name in entry.aliases:
            return entry.name
    report = findings.notice if findings.is_lenient else findings.fault
    report(path, f"{show(name)} is not a model of this file{did_you_mean(name, entries)}")
    return None


def _check_pinned(groups: Iterable[_Group], entries: Mapping[str, ModelEntry], findings: Findings) -> None:
    """Reports a pinned model whose group contains other models. These models could never start."""
    for group in groups:
        pinned = next((name for name in group.members if entries[name].pinned), None)
        if pinned is not None and group.swap and len(group.members) > 1:
            where = f"groups.{group.name}" if group.name else "commands without a group"
            findings.fault(
                ("models", pinned, "pinned"),
                f"must be false: one model of {where} runs at a time, so that no other could ever start",
            )


def check_preload(names: Iterable[str], entries: Mapping[str, ModelEntry], findings: Findings) -> set[str]:
    """The names in `hooks.on_startup.preload` that are names of models."""
    place = ("hooks", "on_startup", "preload")
    found = set()
    for number, given in enumerate(names):
        name = _named(given.strip(), (*place, number), entries, findings)
        if name is not None:
            found.add(name)
    return found


_TERM: Final = re.compile(r"\+?[\w.-]+")


def apply_matrix(
    matrix: Mapping[str, Any], path: KeyPath, entries: Mapping[str, ModelEntry], findings: Findings
) -> dict[str, ModelEntry]:
    """Sets `excludes` of all models by the matrix. Returns the models.

    A model excludes all models that share no set with it. Pinned models are never excluded. If each two of
    three models share a set, all three may run together.
    """
    expressions = _Expressions(matrix.get("sets") or {}, matrix.get("vars") or {}, entries)
    together: _Family = frozenset()
    for name in matrix.get("sets") or {}:
        try:
            together |= expressions.family(name)
        except _ExpressionError as err:
            findings.fault((*path, "sets", name), str(err))

    def excluded(name: str) -> frozenset[str]:
        others = [other for other, entry in entries.items() if other != name and not entry.pinned]
        return frozenset(other for other in others if {other, name} not in together)

    return {name: replace(entry, excludes=excluded(name)) for name, entry in entries.items()}


_Family: TypeAlias = frozenset[frozenset[str]]
"""The models that an expression allows together. Each set has one model, or two that may run together."""


class _ExpressionError(Exception):
    """An expression of the matrix cannot be evaluated."""


class _Expressions:
    """Evaluates expressions such as `(a | b) & c`. A name is a model, and `+name` is another expression."""

    def __init__(self, texts: Mapping[str, str], names: Mapping[str, str], entries: Mapping[str, ModelEntry]) -> None:
        self._texts = texts
        self._names = names
        self._entries = entries
        self._found: dict[str, _Family] = {}

    def family(self, name: str, within: tuple[str, ...] = ()) -> _Family:
        """Evaluates the expression `name`, which the expressions `within` use. Raises _ExpressionError."""
        if name in within:
            raise _ExpressionError(f"must not contain itself: {' -> '.join([*within, name])}")
        if name not in self._found:
            terms: list[str] = []

            def number(match: re.Match[str]) -> str:
                terms.append(match[0])
                return f"_{len(terms) - 1}"

            try:
                expression = _TERM.sub(number, self._texts[name]).strip()
                tree = ast.parse(expression, mode="eval").body
                self._found[name] = self._combine(tree, terms, (*within, name))
            except (SyntaxError, RecursionError, MemoryError, ValueError):
                text = f"must be an expression such as (a | b) & c, got {show(self._texts[name])}"
                raise _ExpressionError(text) from None
        return self._found[name]

    def _combine(self, tree: ast.AST, terms: list[str], within: tuple[str, ...]) -> _Family:
        """Evaluates a parsed expression. Its operators have the same precedence as in Python."""
        match tree:
            case ast.BinOp(left, ast.BitOr() | ast.BitAnd() as operator, right):
                one, two = (self._combine(side, terms, within) for side in (left, right))
                if isinstance(operator, ast.BitOr):
                    return one | two
                pairs = {a | b for a in one for b in two if len(a) == len(b) == 1}
                return one | two | pairs
            case ast.Name(term):
                return self._read(terms[int(term[1:])], within)
        raise ValueError(tree)

    def _read(self, term: str, within: tuple[str, ...]) -> _Family:
        if term.startswith("+") and term[1:] in self._texts:
            return self.family(term[1:], within)
        model = self._names.get(term, term)
        if model not in self._entries:
            hint = did_you_mean(term, [*self._names, *self._entries])
            raise _ExpressionError(f"{show(term)} is neither a model nor a name of `vars`{hint}")
        return frozenset((frozenset((model,)),))
