"""llama-swap's `matrix`: sets of models that may run together, as what each model excludes."""

import ast
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, TypeAlias

from envs.suggestion import did_you_mean
from router.model_entry import ModelEntry
from router.models_file.document import Findings, KeyPath, show

_TERM: Final = re.compile(r"\+?[\w.-]+")


def apply_matrix(
    matrix: Mapping[str, Any], path: KeyPath, entries: Mapping[str, ModelEntry], findings: Findings
) -> dict[str, ModelEntry]:
    """The models with what they exclude: all that are in no set with them.

    Only pairs count. Of three models that are together in pairs, but not in one set, memory decides.
    """
    expressions = _Expressions(matrix.get("sets") or {}, matrix.get("vars") or {}, entries)
    together: _Family = frozenset()
    for name in matrix.get("sets") or {}:
        try:
            together |= expressions.family(name)
        except _ExpressionError as err:
            findings.fault((*path, "sets", name), str(err))

    def excluded(name: str) -> frozenset[str]:
        return frozenset(o for o, e in entries.items() if o != name and not e.pinned and {o, name} not in together)

    return {name: replace(entry, excludes=excluded(name)) for name, entry in entries.items()}


_Family: TypeAlias = frozenset[frozenset[str]]
"""The sets that an expression stands for: one name for each model, and two names for each pair in one set."""


class _ExpressionError(Exception):
    """An expression is wrong."""


class _Expressions:
    """Reads `(a | b) & c`, where names stand for models, and `+name` for another expression."""

    def __init__(self, texts: Mapping[str, str], names: Mapping[str, str], entries: Mapping[str, ModelEntry]) -> None:
        self._texts = texts
        self._names = names
        self._entries = entries
        self._found: dict[str, _Family] = {}

    def family(self, name: str, within: tuple[str, ...] = ()) -> _Family:
        """The sets of an expression, which `within` use; raises _ExpressionError."""
        if name in within:
            raise _ExpressionError(f"must not contain itself: {' -> '.join([*within, name])}")
        if name not in self._found:
            terms: list[str] = []

            def number(match: re.Match[str]) -> str:
                terms.append(match[0])
                return f"_{len(terms) - 1}"

            try:
                tree = ast.parse(_TERM.sub(number, self._texts[name]).strip(), mode="eval").body
                self._found[name] = self._combine(tree, terms, (*within, name))
            except (SyntaxError, RecursionError, MemoryError, ValueError):
                text = f"must be an expression such as (a | b) & c, got {show(self._texts[name])}"
                raise _ExpressionError(text) from None
        return self._found[name]

    def _combine(self, tree: ast.AST, terms: list[str], within: tuple[str, ...]) -> _Family:
        """The operators have the order that they have in Python."""
        match tree:
            case ast.BinOp(left, ast.BitOr() | ast.BitAnd() as operator, right):
                one, two = (self._combine(side, terms, within) for side in (left, right))
                return one | two | (_crossed(one, two) if isinstance(operator, ast.BitAnd) else frozenset())
            case ast.Name(term):
                return self._read(terms[int(term[1:])], within)
        raise ValueError(tree)

    def _read(self, term: str, within: tuple[str, ...]) -> _Family:
        if term.startswith("+") and term[1:] in self._texts:
            return self.family(term[1:], within)
        model = self._names.get(term, term)
        if model not in self._entries:
            hint = did_you_mean(term, [*self._names, *self._entries])
            raise _ExpressionError(f"{show(term)} is no model, and no name of `vars`{hint}")
        return frozenset((frozenset((model,)),))


def _crossed(one: _Family, two: _Family) -> _Family:
    """Each model of the one with each of the other."""
    return frozenset(a | b for a in one for b in two if len(a) == len(b) == 1)
