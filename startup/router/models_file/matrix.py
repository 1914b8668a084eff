"""llama-swap's `matrix`: sets of models that may run together, as what each model excludes."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

from envs.suggestion import did_you_mean
from startup.router.model_entry import ModelEntry
from startup.router.models_file.document import Findings, KeyPath, show

_TOKEN: Final = re.compile(r"\s*([&|()]|\+?[\w.-]+|\S)")
_MAX_DEPTH: Final = 100


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
        """The sets of an expression; raises _ExpressionError.

        Args:
            within: what is being read: expressions, and a bracket each.
        """
        if name in within:
            raise _ExpressionError(f"must not contain itself: {' -> '.join([*filter(bool, within), name])}")
        if name not in self._found:
            tokens = _TOKEN.findall(self._texts[name])[::-1]
            found = self._either(tokens, (*within, name))
            if tokens:
                raise _ExpressionError(f"has {show(tokens[-1])} where & or | should be")
            self._found[name] = found
        return self._found[name]

    def _either(self, tokens: list[str], within: tuple[str, ...]) -> _Family:
        if len(within) > _MAX_DEPTH:
            raise _ExpressionError("is nested too deeply")
        found = self._both(tokens, within)
        while tokens and tokens[-1] == "|":
            tokens.pop()
            found = found.either(self._both(tokens, within))
        return found

    def _both(self, tokens: list[str], within: tuple[str, ...]) -> _Family:
        found = self._one(tokens, within)
        while tokens and tokens[-1] == "&":
            tokens.pop()
            found = found.both(self._one(tokens, within))
        return found

    def _one(self, tokens: list[str], within: tuple[str, ...]) -> _Family:
        token = tokens.pop() if tokens else ""
        if token == "(":
            found = self._either(tokens, (*within, ""))
            if not tokens or tokens.pop() != ")":
                raise _ExpressionError("has a bracket that is not closed")
            return found
        if token.startswith("+") and token[1:] in self._texts:
            return self.family(token[1:], within)
        model = self._names.get(token, token)
        if model not in self._entries:
            known = [*self._names, *self._entries]
            raise _ExpressionError(f"{show(token)} is no model, and no name of `vars`{did_you_mean(token, known)}")
        return _Family(frozenset((model,)), frozenset())
