"""Replaces macros and environment variables in the file, drops empty keys, and keeps some strings."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Final

from envs import foreign
from envs.suggestion import did_you_mean
from router.models_file.commands import without_comments
from router.models_file.document import Findings, Key, KeyPath, Node, value_of
from router.models_file.schema import load_schema

_MACRO: Final = re.compile(r"\$\{(env\.[A-Za-z_][A-Za-z0-9_]*|[A-Za-z0-9_-]+)\}")
_ENVIRONMENT: Final = "env."
_MAX_TEXT: Final = 1 << 16
"""The most characters of a text with its macros replaced, because nested macros can grow exponentially."""
_COMMANDS: Final = ("cmd", "cmdStop")
_WITHOUT_PORT: Final = ("model", "args", "aliases", "useModelName", "filters")
"""Keys of a model in which `${PORT}` is not allowed."""
_TEXTS: Final = frozenset(
    ("model", "cmd", "cmdStop", "proxy", "checkEndpoint", "name", "description", "useModelName", "stripParams", "id")
)
_LISTS_OF_TEXTS: Final = frozenset(("aliases", "apiKeys", "members", "preload"))
"""Keys whose lists contain strings, even if YAML would read an item as a number."""
_FREE: Final = frozenset(("args", "env", "metadata", "setParams", "setParamsByID"))
"""Keys of a model below which the user chooses the names."""


class MacroError(Exception):
    """A macro cannot be replaced."""


def expand(text: str, texts: Mapping[str, object], kept: Collection[str] = (), within: tuple[str, ...] = ()) -> Any:
    """Replaces the macros in a text. If the text is a single macro, the result is the macro's value.

    Args:
        texts: name of a macro -> its value, which replaces `${NAME}`.
        kept: names, such as PORT, that are replaced only when a model starts.
        within: the macros whose values contain the text.
    """

    def value_of_macro(match: re.Match[str]) -> Any:
        name = match[1]
        if name.startswith(_ENVIRONMENT):
            variable = name.removeprefix(_ENVIRONMENT)
            if not foreign.is_set(variable):
                raise MacroError(f"{match[0]}: the environment variable {variable} is not set")
            return foreign.text_of(variable)
        if name in kept:
            return match[0]
        if name in within:
            circle = " -> ".join((*within[within.index(name) :], name))
            raise MacroError(f"the macros contain themselves: {circle}")
        if name not in texts:
            places = {"PID": ": only cmdStop may contain it", "PORT": ": only cmd, proxy and env may contain it"}
            hint = places.get(name) or did_you_mean(name, texts)
            raise MacroError(f"there is no macro {match[0]}{hint}")
        if (value := texts[name]) is None or isinstance(value, dict | list):
            kinds = {"NoneType": "has no value", "dict": "is a mapping", "list": "is a list"}
            kind = kinds[type(value).__name__]
            raise MacroError(f"the macro {match[0]} {kind}: give it a text, a number, true or false")
        return expand(value, texts, kept, (*within, name)) if isinstance(value, str) else value

    if (whole := _MACRO.fullmatch(text)) is not None:
        return value_of_macro(whole)
    expanded = _MACRO.sub(lambda match: _as_text(value_of_macro(match)), text)
    if len(expanded) > _MAX_TEXT:
        raise MacroError(f"has more than {_MAX_TEXT} characters with its macros: shorten them")
    return expanded


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def complete(root: Node, findings: Findings) -> Node:
    """The document with all macros replaced. An unknown macro is a fault. Unknown keys stay unchanged."""
    if not isinstance(root.value, dict):
        return root
    schema = load_schema()
    known, known_of_model = schema["properties"], schema["$defs"]["model"]["properties"]
    shared = _texts_of(root)
    outside = _Completion(findings, lambda _, text: expand(text, shared))

    def complete_key(key: str, node: Node) -> Node:
        if key == "models" and isinstance(node.value, dict):
            return outside.mapping(("models",), node, complete_model)
        has_macros = key in known and key not in ("models", "macros")
        return outside.read((key,), node) if has_macros else node

    def complete_model(name: str, node: Node) -> Node:
        if not isinstance(node.value, dict):
            return node
        texts = {**shared, "MODEL_ID": name, **_texts_of(node)}
        within = _Completion(findings, lambda path, text: expand(text, texts, _kept_at(path[2])))

        def complete_value(key: str, child: Node) -> Node:
            if key in _COMMANDS and child.text is not None:
                child = replace(child, text=without_comments(child.text))
            is_read = key in known_of_model and key != "macros"
            return within.read(("models", name, key), child) if is_read else child

        return within.mapping(("models", name), node, complete_value)

    return outside.mapping((), root, complete_key)


def _texts_of(node: Node) -> dict[str, Any]:
    """The macros that the mapping `macros` of this node defines."""
    defined = node.value.get("macros")
    return defined.plain() if defined is not None and isinstance(defined.value, dict) else {}


def _kept_at(key: Key) -> Collection[str]:
    if key in _WITHOUT_PORT:
        return ()
    return ("PORT", "PID") if key == "cmdStop" else ("PORT",)


class _Completion:
    """Replaces macros in one part of the document."""

    def __init__(self, findings: Findings, expand_at: Callable[[KeyPath, str], Any]) -> None:
        """`expand_at` replaces the macros in a text that is at a path of the document."""
        self._findings = findings
        self._expand_at = expand_at

    def read(self, path: KeyPath, node: Node) -> Node:
        """The node with all macros in its values replaced."""
        match node.value:
            case dict():
                return self.mapping(path, node, lambda key, child: self.read((*path, key), child))
            case list():
                items = [self.read((*path, index), child) for index, child in enumerate(node.value)]
                return replace(node, value=items)
        return replace(node, value=self._scalar(path, node))

    def mapping(self, path: KeyPath, node: Node, complete_value: Callable[[str, Node], Node]) -> Node:
        """Replaces macros in the values of a mapping. Drops keys without a value, except names of models."""
        result = Node({}, node.line)
        keeps_empty = path == ("models",) or not _FREE.isdisjoint(path[2:])
        for key, child in node.value.items():
            if child.value is None and not keeps_empty and (*path, key) != ("models",):
                continue
            name = _as_text(self._expand((*path, key), key)) if path else key
            result.value[name] = complete_value(name, child)
            result.key_lines[name] = node.key_lines[key]
        return result

    def _scalar(self, path: KeyPath, node: Node) -> Any:
        is_item = isinstance(path[-1], int) and path[-2] in _LISTS_OF_TEXTS
        is_text = (is_item or path[-1] in _TEXTS) and _FREE.isdisjoint(path[2:])
        given = node.text if is_text and node.value is not None else node.value
        if not isinstance(given, str):
            return given
        value = self._expand(path, given)
        if is_text:
            return _as_text(value)
        is_typed = isinstance(value, str) and not node.is_quoted and f"${{{_ENVIRONMENT}" in given
        return value_of(value) if is_typed else value

    def _expand(self, path: KeyPath, text: str) -> Any:
        try:
            return self._expand_at(path, text)
        except MacroError as err:
            self._findings.fault(path, str(err))
            return "-"
