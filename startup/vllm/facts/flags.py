"""Reads the flags of `vllm serve`: follows the functions that add them to the parser, statement by statement.

vLLM builds a flag from the type of a field of a configuration class (`_compute_kwargs` of its `arg_utils`);
`_spec_of` does the same. What cannot be read is a flag whose values are not checked, or makes the list of
flags incomplete.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from startup.vllm.facts.definitions import Definitions, Hint, Hints, UnreadableError
from startup.vllm.facts.module_text import ClassText, ModuleText
from startup.vllm.facts.vllm_facts import FlagFact

_SERVE: Final = "vllm.entrypoints.cli.serve"
_ARGUMENTS: Final = "vllm.engine.arg_utils"
_ARGPARSE: Final = "vllm.utils.argparse_utils"
_INVERSES: Final = re.compile(r"\b_inverse_prefixes *= *\{([^}]*)\}")
_PARSER: Final = ("parser", "serve_parser")
_PLATFORM_HOOK: Final = "pre_register_and_update"
"""Lets a platform change the parser; those of vLLM add no flag."""
_NONE_AS_TEXT: Final = 'append("None")'
"""What vLLM before 0.31 adds to the choices of an optional value, which does not allow to leave it out."""
_FOLDED: Final = "lambda s: s.lower().replace('-', '_')"


class Flags(NamedTuple):
    """The flags, and whether they are all."""

    flags: tuple[FlagFact, ...]
    is_complete: bool
    """False if vLLM adds flags in a way that is not understood."""


class _Spec(dict[str, Any]):
    """The arguments of `add_argument` that matter, by the names of `FlagFact`; `is_negatable` of a switch."""


class _Table:
    """The arguments for each field of a configuration class; a field is read when it is asked for."""

    def __init__(self, reader: "_Reader", module: ModuleText, class_name: str) -> None:
        self._reader = reader
        self._fields = reader.definitions.class_fields(module, class_name)
        self._specs: dict[str, _Spec] = {}

    def spec(self, name: str) -> _Spec:
        """The arguments for one field, which may be changed."""
        if name not in self._specs:
            found = self._fields.get(name)
            self._specs[name] = self._reader.spec(name, *found) if found is not None else _Spec(kind="unknown")
        return self._specs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)


def read_flags(definitions: Definitions) -> Flags:
    """Reads them from the function that `vllm serve` calls."""
    reader = _Reader(definitions)
    serve = definitions.module(_SERVE)
    imported = serve.imports.get("make_arg_parser") if serve is not None else None
    module = definitions.module(imported.module) if imported is not None else None
    function = module.function("make_arg_parser") if module is not None else None
    if module is None or function is None:
        return Flags((), is_complete=False)
    reader.read(module, function)
    return Flags(tuple(reader.flags), reader.is_complete)


class _Reader:
    """Collects the flags of a function and of those that it calls with the parser."""

    def __init__(self, definitions: Definitions) -> None:
        self.definitions = definitions
        self._conversion = _conversion_source(definitions)
        self._inverses = _inverse_prefixes(definitions)
        self.flags: list[FlagFact] = []
        self.is_complete = True

    def read(self, module: ModuleText, function: ast.FunctionDef) -> None:
        _Function(self, module).run(function.body)

    def read_method(self, module: ModuleText, class_name: str, name: str) -> None:
        """Reads the method that adds the flags of a class."""
        lineage = list(self.definitions.lineage(module, class_name))
        for owner, found in lineage:
            if (method := found.method(name)) is None:
                continue
            if any(isinstance(node, ast.For) for node in method.body):
                self._add_all_fields(module, class_name, lineage)
            else:
                _Function(self, owner).run(method.body)
            return
        raise UnreadableError(f"{class_name}.{name}")

    def _add_all_fields(self, module: ModuleText, class_name: str, lineage: list[tuple[ModuleText, ClassText]]) -> None:
        """Each field of the class is a flag, after the changes that `_customize_cli_kwargs` makes."""
        table = _Table(self, module, class_name)
        for owner, found in reversed(lineage):
            if (method := found.method("_customize_cli_kwargs")) is not None:
                function = _Function(self, owner)
                function.tables[method.args.args[-1].arg] = table
                function.run(method.body)
        for field in table:
            self.add((f"--{field.replace('_', '-')}",), table.spec(field))

    def spec(self, name: str, module: ModuleText, field: ast.AnnAssign) -> _Spec:
        """The arguments for one field; those of an unknown type are not checked."""
        try:
            return _spec_of(name, self.definitions.hints(module, field.annotation), self._conversion)
        except UnreadableError:
            return _Spec(kind="unknown")

    def add(self, names: tuple[str, ...], spec: _Spec) -> None:
        known = dict(spec)
        opposites = tuple(self._opposites(names)) if known.pop("is_negatable", False) else ()
        self.flags.append(FlagFact(names, opposites=opposites, **known))

    def _opposites(self, names: Iterable[str]) -> Iterator[str]:
        """`--no-x`; vLLM from 0.33 on also takes `--disable-x` for `--enable-x`, and the reverse."""
        for name in (name for name in names if name.startswith("--")):
            yield f"--no-{name[2:]}"
            for prefix, inverse in self._inverses:
                if name.startswith(prefix):
                    yield inverse + name.removeprefix(prefix)


class _Function:
    """Runs the statements of one function that adds flags."""

    def __init__(self, reader: _Reader, module: ModuleText) -> None:
        self._reader = reader
        self._definitions = reader.definitions
        self._module = module
        self.tables: dict[str, _Table] = {}
        self._specs: dict[str, _Spec] = {}

    def run(self, statements: Iterable[ast.stmt]) -> None:
        for statement in statements:
            try:
                self._run(statement)
            except UnreadableError:
                self._reader.is_complete = False

    def _run(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.If):
            self.run([*statement.body, *statement.orelse])
        elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            self._assign(statement.targets[0], statement.value)
        elif isinstance(statement, ast.AugAssign):
            self._forget_choices(statement.target)
        elif isinstance(statement, ast.Delete):
            for target in statement.targets:
                self._change(target, None)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            self._call(statement.value)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Subscript):
            self._change(target, value)
        elif isinstance(target, ast.Name) and isinstance(value, ast.Call):
            if _called(value) == "get_kwargs" and isinstance(value.args[0], ast.Name):
                self.tables[target.id] = _Table(self._reader, self._module, value.args[0].id)
            else:
                self._call(value)
        elif isinstance(target, ast.Name) and (spec := self._spec_at(value)) is not None:
            self._specs[target.id] = spec

    def _change(self, target: ast.expr, value: ast.expr | None) -> None:
        """`table["field"]["choices"] = value`, or its deletion."""
        if not isinstance(target, ast.Subscript) or (spec := self._spec_at(target.value)) is None:
            return
        key = target.slice.value if isinstance(target.slice, ast.Constant) else None
        if isinstance(key, str):
            spec.update(self._argument(key, value))

    def _forget_choices(self, place: ast.expr) -> None:
        """What is added to the choices of a flag is not known, so that none is known."""
        if isinstance(place, ast.Subscript) and (spec := self._spec_at(place.value)) is not None:
            spec["choices"] = None

    def _spec_at(self, node: ast.expr) -> _Spec | None:
        if isinstance(node, ast.Name):
            return self._specs.get(node.id)
        if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Constant):
            return None
        owner = node.value
        if isinstance(owner, ast.Name) and owner.id in self.tables:
            return self.tables[owner.id].spec(str(node.slice.value))
        if isinstance(owner, ast.Call) and _called(owner) == "get_kwargs" and isinstance(owner.args[0], ast.Name):
            return _Table(self._reader, self._module, owner.args[0].id).spec(str(node.slice.value))
        return None

    def _call(self, call: ast.Call) -> None:
        name = _called(call)
        if name == "add_argument":
            self._add_argument(call)
        elif name == "remove":
            self._remove_choice(call)
        elif name in ("append", "extend", "insert") and isinstance(call.func, ast.Attribute):
            self._forget_choices(call.func.value)
        elif any(isinstance(argument, ast.Name) and argument.id in _PARSER for argument in call.args):
            self._call_with_parser(call, name)

    def _call_with_parser(self, call: ast.Call, name: str) -> None:
        if name == _PLATFORM_HOOK:
            return
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            self._reader.read_method(self._module, call.func.value.id, name)
        else:
            raise UnreadableError(name)

    def _add_argument(self, call: ast.Call) -> None:
        names = [argument.value if isinstance(argument, ast.Constant) else None for argument in call.args]
        if any(not isinstance(name, str) for name in names):
            raise UnreadableError(ast.unparse(call))
        spec = _Spec(kind="text")
        for keyword in call.keywords:
            if keyword.arg is None:
                spec.update(self._unpacked(keyword.value))
            else:
                spec.update(self._argument(keyword.arg, keyword.value))
        if str(names[0]).startswith("-"):
            self._reader.add(tuple(map(str, names)), spec)

    def _unpacked(self, node: ast.expr) -> _Spec:
        """The arguments of `**table["field"]`, also within `**{**table["field"], "default": None}`."""
        if isinstance(node, ast.Dict):
            spec = _Spec()
            for key, value in zip(node.keys, node.values, strict=True):
                if key is None:
                    spec.update(self._unpacked(value))
                elif isinstance(key, ast.Constant):
                    spec.update(self._argument(str(key.value), value))
            return spec
        found = self._spec_at(node)
        return _Spec(found) if found is not None else _Spec(kind="unknown")

    def _argument(self, key: str, value: ast.expr | None) -> _Spec:
        """What one argument of `add_argument` means; `value` is None if it is removed."""
        if key == "nargs":
            return _Spec(nargs=self._definitions.constant(self._module, value) if value is not None else None)
        if key == "choices":
            return _Spec(choices=self._choices(value))
        if key == "type":
            return _spec_of_converter(value)
        if key == "action":
            return self._spec_of_action(value)
        return _Spec()

    def _choices(self, value: ast.expr | None) -> tuple[Any, ...] | None:
        try:
            return tuple(self._definitions.constant(self._module, value)) if value is not None else None
        except (UnreadableError, TypeError):
            return None

    def _spec_of_action(self, value: ast.expr | None) -> _Spec:
        text = ast.unparse(value) if value is not None else ""
        if text.endswith("BooleanOptionalAction"):
            return _Spec(nargs=0, is_negatable=True)
        if text in ("'store_true'", "'store_false'"):
            return _Spec(nargs=0)
        if text == "'append'":
            return _Spec()
        return _Spec(kind="unknown", choices=None)

    def _remove_choice(self, call: ast.Call) -> None:
        """`table["field"]["choices"].remove(NAME)`."""
        place = call.func.value if isinstance(call.func, ast.Attribute) else None
        if not isinstance(place, ast.Subscript) or (spec := self._spec_at(place.value)) is None:
            return
        removed = self._definitions.constant(self._module, call.args[0])
        if spec.get("choices") is not None:
            spec["choices"] = tuple(choice for choice in spec["choices"] if choice != removed)


def _spec_of(name: str, hints: Hints, conversion: str) -> _Spec:
    """The arguments that vLLM derives from the type of a field."""
    spec = _required_spec(name, hints, conversion)
    if Hint("none") in hints and not any(hint.kind == "builtin" and hint.name == "bool" for hint in hints):
        spec["is_optional"] = True
        if spec.get("choices") is not None:
            spec["choices"] = (*spec["choices"], "None" if _NONE_AS_TEXT in conversion else None)
    return spec


def _required_spec(name: str, hints: Hints, conversion: str) -> _Spec:
    """The order of the questions is vLLM's."""
    if any(hint.kind == "dataclass" for hint in hints):
        return _Spec(kind="object")
    names = {hint.name for hint in hints if hint.kind == "builtin"}
    if names == {"bool", "str"} and Hint("none") in hints and "const" in conversion:
        return _Spec(kind="text", nargs="?")
    if "bool" in names:
        return _Spec(kind="unknown", nargs=0, is_negatable=True)
    if (literal := next((hint for hint in hints if hint.kind == "literal"), None)) is not None:
        return _spec_of_literal(literal, is_open="str" in names)
    for collection in ("tuple", "list", "set"):
        if (found := next((hint for hint in hints if hint.name == collection), None)) is not None:
            return _spec_of_collection(found)
    if "int" in names:
        return _Spec(kind=_integer_kind(name, conversion))
    return _spec_of_other(name, names, is_open="str" in names or any(hint.kind == "other" for hint in hints))


def _spec_of_other(name: str, names: set[str], *, is_open: bool) -> _Spec:
    if "float" in names:
        return _Spec(kind="float")
    if "dict" in names:
        return _Spec(kind="json or text" if is_open else "json")
    if is_open:
        return _Spec(kind="text")
    raise UnreadableError(name)


def _spec_of_literal(literal: Hint, *, is_open: bool) -> _Spec:
    kind = {str: "text", int: "int", float: "float"}.get(type(literal.options[0]), "unknown")
    return _Spec(kind=kind, choices=None if is_open else tuple(sorted(literal.options)))


def _spec_of_collection(found: Hint) -> _Spec:
    if not found.items:
        raise UnreadableError(found.name)
    nargs = len(found.items) if found.name == "tuple" and not found.is_open else "+"
    items = found.items[0]
    names = {hint.name for hint in items if hint.kind == "builtin"}
    if len(items) > 1 or "str" in names:
        return _Spec(kind="text", nargs=nargs)
    item = next(iter(items))
    if item.kind == "literal":
        return _Spec(_spec_of_literal(item, is_open=False), nargs=nargs)
    return _Spec(kind=item.name if item.name in ("int", "float") else "unknown", nargs=nargs)


def _integer_kind(name: str, conversion: str) -> str:
    if f'"{name}"' not in conversion and f"'{name}'" not in conversion:
        return "int"
    return "size or auto" if name == "max_model_len" and "human_readable_int_or_auto" in conversion else "size"


def _spec_of_converter(value: ast.expr | None) -> _Spec:
    """What a `type=` of `add_argument` means."""
    text = ast.unparse(value) if value is not None else "str"
    is_optional = text.startswith("optional_type(")
    text = re.sub(r"^(?:optional_type|parse_type)\((.*)\)$", r"\1", text)
    kinds = {"str": "text", "int": "int", "float": "float", "json.loads": "json", _FOLDED: "folded"}
    kinds["human_readable_int"] = "size"
    kind = kinds.get(text, "unknown")
    return _Spec(kind=kind, is_optional=is_optional, **({} if kind != "unknown" else {"choices": None}))


def _called(call: ast.Call) -> str:
    """The last part of the called name."""
    func = call.func
    return func.id if isinstance(func, ast.Name) else func.attr if isinstance(func, ast.Attribute) else ""


def _inverse_prefixes(definitions: Definitions) -> list[tuple[str, str]]:
    """Beginnings of a switch's name, and those of its opposite's."""
    module = definitions.module(_ARGPARSE)
    found = _INVERSES.search(module.text) if module is not None else None
    return re.findall(r'"(--\w+-)": *"(--\w+-)"', found[1]) if found is not None else []


def _conversion_source(definitions: Definitions) -> str:
    """The function of vLLM that derives a flag from a field, without its documentation."""
    module = definitions.module(_ARGUMENTS)
    return "".join(map(module.function_source, ("_compute_kwargs", "get_kwargs"))) if module is not None else ""
