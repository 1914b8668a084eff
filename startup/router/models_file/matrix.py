"""llama-swap's `matrix`: sets of models that may run together, as what each model excludes."""

import ast
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

from envs.suggestion import did_you_mean
from startup.router.model_entry import ModelEntry
from startup.router.models_file.document import Findings, KeyPath, show

_TERM: Final = re.compile(r"\+?[\w.-]+")


def apply_matrix(
    matrix: Mapping[str, Any], path: KeyPath, entries: Mapping[str, ModelEntry], findings: Findings
) -> dict[str, ModelEntry]:
    """The models with what they exclude: all that are in no set with them.

    Only pairs count. Of three models that are together in pairs, but not in one set, memory decides.
    """
    expressions = _Expressions(matrix.get("sets") or {}, matrix.get("vars") or {}, entries)
    together: set[frozenset[str]] = set()
    for name in matrix.get("sets") or {}:
        try:
            together |= expressions.family(name).pairs
        except _ExpressionError as err:
            findings.fault((*path, "sets", name), str(err))

    def excluded(name: str) -> frozenset[str]:
        return frozenset(o for o, e in entries.items() if o != name and not e.pinned and {o, name} not in together)

    return {name: replace(entry, excludes=excluded(name)) for name, entry in entries.items()}


class _ExpressionError(Exception):
    """An expression is wrong."""


class _Family(NamedTuple):
    """The sets that an expression stands for: all of their models, and which of them are in one set."""

    models: frozenset[str]
    pairs: frozenset[frozenset[str]]

    def either(self, other: "_Family") -> "_Family":
        return _Family(self.models | other.models, self.pairs | other.pairs)

    def both(self, other: "_Family") -> "_Family":
        crossed = (frozenset((one, two)) for one in self.models for two in other.models)
        return _Family(self.models | other.models, self.pairs | other.pairs | frozenset(crossed))


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
            case ast.BinOp(left, ast.BitOr(), right):
                return self._combine(left, terms, within).either(self._combine(right, terms, within))
            case ast.BinOp(left, ast.BitAnd(), right):
                return self._combine(left, terms, within).both(self._combine(right, terms, within))
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
        return _Family(frozenset((model,)), frozenset())
