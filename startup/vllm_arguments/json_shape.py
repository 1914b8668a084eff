"""The JSON values that vLLM's configuration classes accept: recorded from a class, compared without it.

`shape_of` keeps what is certain of pydantic's schema of a class: vLLM rejects a value without the shape. It
tries with some values what vLLM's own validators change before pydantic checks a value.
"""

import json
import operator
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from math import isinf
from typing import Any, Final, TypeAlias

from base.wording import list_some
from envs.suggestion import did_you_mean
from startup.settings.flag import JsonKind, Limits, Shape

_PASSES_NONE: Final = "_skip_none_validation"
"""A validator of vLLM's classes that changes no value. It only exempts None from the check."""
_PHRASES: Final = {"ge": "{:g} or more", "gt": "more than {:g}", "le": "{:g} or less", "lt": "less than {:g}"}
_TEXTS: Final = ("", "\0", "x", "0", "a,b", "A-b")
"""No names of choices. A validator that changes or accepts one of them may accept any text."""
_OTHERS: Final[tuple[Any, ...]] = (0, 1, -1, 1 << 40, 1.5, True, None, [], ["\0"], {}, {"\0": 1})
"""Values that are no texts. If a validator changes none of them, it changes no value that is no text."""
_BOOLS: Final = ("0", "off", "f", "false", "n", "no", "1", "on", "t", "true", "y", "yes")
_NAMES: Final = {
    "str": "a text",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "list": "a list",
    "dict": "a JSON object",
    "object": "a JSON object",
}
_MAX_CHOICES: Final = 12


_Schema: TypeAlias = Mapping[str, Any]
_ANY: Final = Shape()
_REJECTED: Final = object()
_VARIED: Final[dict[JsonKind, Callable[[str], str]]] = {
    "folded": lambda text: text.swapcase().replace("_", "-") if "_" in text else _TEXTS[0],
    "lower": str.swapcase,
}
"""The kind of a choice -> a function that writes a choice in another way of this kind."""


def limit_problem(limits: Limits, value: Any) -> str | None:
    """Why a number is outside of a range. None for a number inside of it, and for other values."""
    wrong = (kind for kind, limit in limits if not getattr(operator, kind)(value, limit))
    if isinstance(value, int | float) and (kind := next(wrong, None)):
        return f"must be {_PHRASES[kind].format(dict(limits)[kind])}, got {value}"
    return None


def shape_problem(shape: Shape, value: Any, name: str) -> str | None:
    """Why vLLM rejects the value of this name. None if the value has the shape."""
    return next(_problems(shape, value, name, ()), None)


def _problems(shape: Shape, value: Any, name: str, path: tuple[str, ...]) -> Iterator[str]:
    place = f"{name}: {'.'.join(path)}" if path else name
    if shape.kind == "any" or (value is None and shape.is_optional):
        return
    if shape.kind in ("choice", "lower", "folded"):
        if _fold(shape.kind, value) not in [_fold(shape.kind, choice) for choice in shape.choices]:
            choices = [choice for choice in shape.choices if isinstance(choice, str)] or [*map(str, shape.choices)]
            guess = did_you_mean(str(value), choices)
            yield f"{place} {value!r:.80} is not one of {list_some(choices, _MAX_CHOICES)}{guess}"
    elif shape.kind == "union":
        if all(any(_problems(part, value, name, path)) for part in shape.parts):
            yield from _problems(shape.parts[0], value, name, path)
    elif not _fits(shape.kind, value):
        yield f"{place} {value!r:.80} is not {_NAMES[shape.kind]}"
    elif problem := limit_problem(shape.limits, value):
        yield f"{place} {problem}"
    else:
        yield from _problems_inside(shape, value, name, path)


def _problems_inside(shape: Shape, value: Any, name: str, path: tuple[str, ...]) -> Iterator[str]:
    keyed: Any = enumerate(value) if shape.kind == "list" else value.items() if isinstance(value, dict) else ()
    for key, item in keyed:
        if shape.kind == "object" and key not in shape.fields:
            guess = did_you_mean(key, shape.fields)
            if key.partition(":")[0] in shape.fields:  # YAML reads {a:1} as {"a:1": null}
                guess = " (write a space after the colon)"
            yield f"{name} has no field {'.'.join((*path, key))!r:.80}{guess}"
        else:
            part = shape.fields[key] if shape.kind == "object" else shape.parts[0]
            yield from _problems(part, item, name, (*path, str(key)))


def _fold(kind: JsonKind, value: Any) -> Any:
    if not isinstance(value, str) or kind == "choice":
        return value
    return value.lower().replace("-", "_") if kind == "folded" else value.lower()


def _fits(kind: JsonKind, value: Any) -> bool:
    """Whether pydantic may convert a JSON value to this kind. A text may be a number or a switch."""
    if kind in ("list", "dict", "object"):
        return isinstance(value, list if kind == "list" else dict)
    if kind == "str":
        return isinstance(value, str)
    if kind == "bool":
        return value in (0, 1) or (isinstance(value, str) and value.strip().lower() in _BOOLS)
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError):
        return isinstance(value, int)
    return kind == "float" or number.is_integer() or isinf(number)


def shape_of(owner: Any) -> Shape:
    """The shape of the JSON objects that vLLM converts to this class."""
    schema = owner.__pydantic_core_schema__
    return _shape(schema, {each["ref"]: each for each in schema.get("definitions", ())})


def _shape(schema: _Schema, known: _Schema) -> Shape:
    """`known`: the name of a class that occurs in several places -> its schema."""
    read = _READERS.get(schema["type"])
    return _ANY if read is None else read(schema, known)


def _inside(schema: _Schema, known: _Schema) -> Shape:
    return _shape(schema["schema"], known)


def _named(schema: _Schema, known: _Schema) -> Shape:
    others = {name: known[name] for name in known if name != schema["schema_ref"]}  # a class inside of itself ends
    return _shape(known[schema["schema_ref"]], others) if len(others) < len(known) else _ANY


def _in_wrapper(schema: _Schema, known: _Schema) -> Shape:
    is_known = schema["function"]["function"].__name__ == _PASSES_NONE
    return _inside(schema, known)._replace(is_optional=True) if is_known else _ANY


def _class(schema: _Schema, known: _Schema) -> Shape:
    return _inside(schema, known) if schema["config"].get("extra_fields_behavior") == "forbid" else _ANY


def _fields(schema: _Schema, known: _Schema) -> Shape:
    taken = [field for field in schema["fields"] if field.get("init") is not False]
    if any("validation_alias" in field for field in taken):
        return _ANY
    return Shape("object", fields={field["name"]: _inside(field, known) for field in taken})


def _items(schema: _Schema, known: _Schema) -> Shape:
    part = schema.get("items_schema") or schema.get("values_schema") or {"type": "any"}
    return Shape(schema["type"], parts=(_shape(part, known),))


def _union(schema: _Schema, known: _Schema) -> Shape:
    choices = (choice[0] if isinstance(choice, tuple) else choice for choice in schema["choices"])
    return Shape("union", parts=tuple(_shape(choice, known) for choice in choices))


def _literals(schema: _Schema, _: _Schema) -> Shape:
    is_plain = all(isinstance(choice, str | int | None) for choice in schema["expected"])
    return Shape("choice", choices=tuple(schema["expected"])) if is_plain else _ANY


def _members(schema: _Schema, _: _Schema) -> Shape:
    values = [member.value for member in schema["members"] if isinstance(member.value, str | int)]
    texts = map(str, values) if "sub_type" in schema else ()
    return Shape("choice", choices=(*values, *texts)) if "missing" not in schema else _ANY


def _plain(schema: _Schema, _: _Schema) -> Shape:
    return Shape(schema["type"], limits=tuple((limit, schema[limit]) for limit in _PHRASES if limit in schema))


def _before(schema: _Schema, known: _Schema) -> Shape:
    """The shape of values for a validator of vLLM that may change them before pydantic checks them."""
    if schema["function"]["type"] != "no-info":
        return _ANY
    change, inner, owner = schema["function"]["function"], _inside(schema, known), _owner(schema["schema"], known)
    is_class = inner.kind == "object" and isinstance(_changed(change, {}), owner or ())
    if any(not _keeps(change, value) and not (is_class and isinstance(value, dict)) for value in _OTHERS):
        return _ANY
    if all(_keeps(change, text) for text in _TEXTS):
        return inner
    names = (*getattr(owner, "__members__", ()), *map(str, inner.choices), "auto")
    chosen = _choices_of(schema, names) if inner.kind == "choice" else None
    if chosen is None:
        return Shape("union", parts=(inner, Shape("str")))
    others = (choice for choice in inner.choices if not isinstance(choice, str))
    return inner._replace(kind=chosen.kind, choices=(*chosen.choices, *others))


def _choices_of(schema: _Schema, names: tuple[str, ...]) -> Shape | None:
    """The names that a validator accepts, and whether it ignores case and dashes. None if it accepts any."""
    from pydantic_core import SchemaValidator

    validator = SchemaValidator(schema)

    def is_accepted(text: str) -> bool:
        return _changed(validator.validate_json, json.dumps(text)) is not _REJECTED

    if any(map(is_accepted, _TEXTS)):
        return None
    texts = tuple(filter(is_accepted, dict.fromkeys(names)))
    kinds = (kind for kind, vary in _VARIED.items() if any(is_accepted(vary(text)) for text in texts))
    return Shape(next(kinds, "choice"), choices=texts)


def _owner(schema: _Schema, known: _Schema) -> Any:
    """The class of a dataclass or of choices, in whatever else the schema has around it."""
    while "cls" not in schema:
        schema = known.get(schema.get("schema_ref", "")) or schema.get("schema") or {"cls": None}
    return schema["cls"]


def _keeps(change: Callable[[Any], Any], value: Any) -> bool:
    kept = _changed(change, value)
    return type(kept) is type(value) and bool(kept == value)


def _changed(change: Callable[[Any], Any], value: Any) -> Any:
    try:
        return change(deepcopy(value))
    except Exception:  # noqa: BLE001 - whatever a validator raises
        return _REJECTED


_READERS: Final[dict[str, Callable[[_Schema, _Schema], Shape]]] = {
    "definitions": _inside,
    "default": _inside,
    "function-after": _inside,
    "definition-ref": _named,
    "nullable": lambda schema, known: _inside(schema, known)._replace(is_optional=True),
    "function-wrap": _in_wrapper,
    "function-before": _before,
    "dataclass": _class,
    "dataclass-args": _fields,
    "list": _items,
    "dict": _items,
    "union": _union,
    "literal": _literals,
    "enum": _members,
    "str": _plain,
    "bool": _plain,
    "int": _plain,
    "float": _plain,
}
"""pydantic's name of a schema -> the function that reads such a schema. Others may have any value."""
