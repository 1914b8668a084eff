"""Follows names through the modules of vLLM to their definitions, and evaluates constants and type hints."""

import ast
from collections.abc import Iterator
from functools import cache
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from startup.hooks.sources import Sources
from startup.vllm.facts.module_text import ClassText, ImportedName, ModuleText

_PACKAGE: Final = "vllm"
_MAX_STEPS: Final = 8
_BUILTINS: Final = ("bool", "int", "float", "str", "dict", "list", "tuple", "set", "object", "type", "bytes")
_WRAPPERS: Final = ("Annotated", "SkipValidation", "Final")
_NOT_FIELDS: Final = ("ClassVar", "InitVar")


class UnreadableError(Exception):
    """A definition cannot be evaluated without running vLLM."""


class Definition(NamedTuple):
    """Where a name is defined, and its value: a class, an expression, or a name of another package."""

    module: ModuleText
    value: ClassText | ast.expr | ImportedName


class Hint(NamedTuple):
    """One of the types that a field may have."""

    kind: Literal["none", "builtin", "literal", "dataclass", "other"]
    name: str = ""
    """Of a built-in type or class."""
    options: tuple[Any, ...] = ()
    """Of a `Literal`."""
    items: tuple[frozenset["Hint"], ...] = ()
    """The types of the items of a list, tuple or set."""
    is_open: bool = False
    """Whether a tuple may have any length."""


Hints: TypeAlias = frozenset[Hint]

_NONE: Final = Hint("none")
_OTHER: Final = Hint("other")


class Definitions:
    """The definitions in vLLM's modules."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self.module = cache(self._read_module)
        self.class_fields = cache(self._read_class_fields)
        self._hints_of_name = cache(self._read_hints_of_name)

    def find(self, module: ModuleText, name: str, *, steps: int = _MAX_STEPS) -> Definition | None:
        """The definition of a name that is used in a module."""
        if (found := module.class_text(name)) is not None:
            return Definition(module, found)
        imported = module.imports.get(name)
        value = module.expression(name)
        if value is not None:
            return Definition(module, value)
        if imported is None:
            sources = filter(None, map(self.module, module.star_imports)) if steps else ()
            return next(filter(None, (self.find(source, name, steps=steps - 1) for source in sources)), None)
        if imported.module.partition(".")[0] != _PACKAGE:
            return Definition(module, imported)
        source = self.module(imported.module)
        return self.find(source, imported.name, steps=steps - 1) if source is not None and steps else None

    def find_class(self, module: ModuleText, name: str) -> tuple[ModuleText, ClassText]:
        """The class of that name; raises UnreadableError if it is none of vLLM's."""
        found = self.find(module, name)
        if found is None or not isinstance(found.value, ClassText):
            raise UnreadableError(f"{module.name}.{name} is no class")
        return found.module, found.value

    def lineage(self, module: ModuleText, name: str) -> Iterator[tuple[ModuleText, ClassText]]:
        """The class and its bases in vLLM, the nearest first."""
        module, found = self.find_class(module, name)
        yield module, found
        for base in found.bases:
            definition = self.find(module, base) if base.isidentifier() else None
            if definition is not None and isinstance(definition.value, ClassText):
                yield from self.lineage(definition.module, base)

    def constant(self, module: ModuleText, node: ast.expr) -> Any:
        """The value of a constant expression, such as a list of texts or `get_args(SomeLiteral)`."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            return [self.constant(module, item) for item in node.elts]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.constant(module, node.operand)
        if isinstance(node, ast.Call) and _name_of(node.func) in ("get_args", "list", "sorted") and node.args:
            return self._arguments(module, node.args[0])
        if isinstance(node, ast.Name):
            found = self.find(module, node.id)
            if found is not None and isinstance(found.value, ast.expr):
                return self.constant(found.module, found.value)
        raise UnreadableError(ast.unparse(node))

    def hints(self, module: ModuleText, node: ast.expr) -> Hints:
        """All types that an annotation allows; raises UnreadableError for one that is not known."""
        if isinstance(node, ast.Constant) and node.value is None:
            return frozenset([_NONE])
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return self.hints(module, node.left) | self.hints(module, node.right)
        if isinstance(node, ast.Attribute):
            return frozenset([_OTHER])
        if isinstance(node, ast.Name):
            return self._hints_of_name(module, node.id)
        if isinstance(node, ast.Subscript):
            return self._hints_of_subscript(module, _name_of(node.value), _items(node.slice))
        raise UnreadableError(ast.unparse(node))

    def _read_hints_of_name(self, module: ModuleText, name: str) -> Hints:
        if name in _BUILTINS:
            return frozenset([Hint("builtin", name)])
        found = self.find(module, name)
        if found is None:
            raise UnreadableError(f"{module.name}.{name}")
        if isinstance(found.value, ClassText):
            return frozenset([_hint_of_class(found.value)])
        return self.hints(found.module, found.value) if isinstance(found.value, ast.expr) else frozenset([_OTHER])

    def _hints_of_subscript(self, module: ModuleText, name: str, items: list[ast.expr]) -> Hints:
        if name == "Literal":
            return frozenset([Hint("literal", options=tuple(self._options(module, items)))])
        if name == "Optional":
            return self.hints(module, items[0]) | {_NONE}
        if name == "Union":
            return frozenset().union(*(self.hints(module, item) for item in items))
        if name in _WRAPPERS:
            return self.hints(module, items[0])
        if name in ("list", "tuple", "set"):
            is_open = any(isinstance(item, ast.Constant) and item.value is ... for item in items)
            types = [item for item in items if not (isinstance(item, ast.Constant) and item.value is ...)]
            return frozenset(
                [Hint("builtin", name, items=tuple(self.hints(module, item) for item in types), is_open=is_open)]
            )
        return frozenset([Hint("builtin", name) if name in _BUILTINS else _OTHER])

    def _options(self, module: ModuleText, items: list[ast.expr]) -> Iterator[Any]:
        """The options of a `Literal`, which may contain others."""
        for item in items:
            if isinstance(item, ast.Constant):
                yield item.value
            else:
                for hint in self.hints(module, item):
                    yield from hint.options

    def _arguments(self, module: ModuleText, node: ast.expr) -> list[Any]:
        """What `get_args` returns for a `Literal`."""
        hints = self.hints(module, node) if isinstance(node, ast.Name) else frozenset()
        options = [option for hint in hints if hint.kind == "literal" for option in hint.options]
        if not options:
            raise UnreadableError(ast.unparse(node))
        return options

    def _read_module(self, name: str) -> ModuleText | None:
        text = self._sources.text(name)
        return None if text is None else ModuleText(name, text, is_package=self._sources.is_package(name))

    def _read_class_fields(self, module: ModuleText, name: str) -> dict[str, tuple[ModuleText, ast.AnnAssign]]:
        """The fields of a dataclass, those of its bases first."""
        fields = {}
        for owner, found in reversed(list(self.lineage(module, name))):
            for field in found.fields:
                if isinstance(field.target, ast.Name) and not _is_no_field(field.annotation):
                    fields[field.target.id] = (owner, field)
        return fields


def _hint_of_class(found: ClassText) -> Hint:
    if found.is_dataclass:
        return Hint("dataclass", found.name)
    if any(base.partition("[")[0] == "dict" for base in found.bases):
        return Hint("builtin", "dict")
    return Hint("other", found.name)


def _items(node: ast.expr) -> list[ast.expr]:
    return list(node.elts) if isinstance(node, ast.Tuple) else [node]


def _name_of(node: ast.expr) -> str:
    """The last part of a name: `Literal` of `typing.Literal`."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _is_no_field(annotation: ast.expr) -> bool:
    return isinstance(annotation, ast.Subscript) and _name_of(annotation.value) in _NOT_FIELDS
