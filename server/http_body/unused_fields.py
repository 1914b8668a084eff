"""Request fields without effect: unknown names, and known ones that this server does not implement.

vLLM ignores both. Here each name is logged once per process, so that a typing error can be found; with
`--reject-unknown-fields` both are errors. Clients may invent names: only so many are remembered and logged.
"""

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from server.errors import RequestError
from server.http_body.fields import INEFFECTIVE

logger = logging.getLogger(__name__)

_MAX_NAMES = 256
_MAX_NAME_CHARS = 64
_NUMBERS = {b"true": b"1", b"false": b"0"}
_NUMBER_TYPES = (inspect.IntType, inspect.FloatType)


class UnusedFields:
    """What to do with fields without effect; one per server, used by all threads."""

    def __init__(self, *, is_rejecting: bool = False) -> None:
        self.is_rejecting = is_rejecting
        self._logged: set[str] = set()

    def check(self, request: Any) -> None:
        """Logs the known fields without effect that a request sets.

        Raises:
            RequestError: there is one, and they are rejected.
        """
        model: type[msgspec.Struct] = type(request)
        for name, default in _ineffective_fields(model):
            value = getattr(request, name)
            if not value or value == default:
                continue
            if self.is_rejecting:
                raise RequestError(f"`{name}` is not supported by this server; leave it out.", param=name)
            self._log(name, "is not supported by this server")

    def repair(self, body: bytes, model: type) -> bytes:
        """A body as vLLM reads it: without unknown fields, which are logged; numbers instead of booleans.

        Only booleans are replaced that stand where a number is expected.

        Raises:
            msgspec.DecodeError: the body is not valid JSON.
        """
        unknown: set[str] = set()
        kept = _prune(body, _schema(model), "", unknown)
        for name in sorted(unknown):
            self._log(name, "is unknown")
        return bytes(kept)

    def _log(self, name: str, problem: str) -> None:
        shown = name[:_MAX_NAME_CHARS]
        if shown in self._logged or len(self._logged) > _MAX_NAMES:
            return
        self._logged.add(shown)
        if len(self._logged) > _MAX_NAMES:
            logger.warning("more than %d request fields had no effect; further ones are not logged", _MAX_NAMES)
            return
        logger.warning("the request field %r %s and is ignored; this is logged once", shown, problem)


@cache
def _ineffective_fields(model: type[msgspec.Struct]) -> tuple[tuple[str, Any], ...]:
    """Names and defaults of the fields of a struct that have no effect."""
    fields = msgspec.structs.fields(model)
    return tuple((field.name, field.default) for field in fields if _is_ineffective(field.type))


def _is_ineffective(kind: Any) -> bool:
    return INEFFECTIVE in getattr(kind, "__metadata__", ())


@cache
def _schema(model: type) -> inspect.Type:
    return inspect.type_info(model)


def _prune(value: bytes | msgspec.Raw, kind: inspect.Type, path: str, unknown: set[str]) -> bytes | msgspec.Raw:
    """The JSON value without unknown fields, whose names are added to `unknown`; may be unchanged."""
    try:
        if structs := [part for part in _parts(kind) if isinstance(part, inspect.StructType)]:
            return _prune_object(value, structs, path, unknown)
        if item_type := _item_type(kind):
            members = msgspec.json.decode(value, type=list[msgspec.Raw])
            pruned = [_prune(member, item_type, path + "[]", unknown) for member in members]
            return msgspec.json.encode([msgspec.Raw(member) for member in pruned])
    except msgspec.ValidationError:
        pass  # a value of another type, which the request's decoder describes
    return _NUMBERS.get(bytes(value), value) if _is_number(kind) else value


def _is_number(kind: inspect.Type) -> bool:
    """Whether numbers are expected, and no booleans."""
    kinds = {type(part) for part in _parts(kind)}
    return not kinds.isdisjoint(_NUMBER_TYPES) and inspect.BoolType not in kinds


def _prune_object(
    value: bytes | msgspec.Raw, structs: list[inspect.StructType], path: str, unknown: set[str]
) -> bytes | msgspec.Raw:
    members = msgspec.json.decode(value, type=dict[str, msgspec.Raw])
    struct = _choose(structs, members)
    if struct is None:
        return value
    types = {field.encode_name: field.type for field in struct.fields}
    kept = {}
    for name, member in members.items():
        place = f"{path}.{name}" if path else name
        if name in types:
            kept[name] = msgspec.Raw(_prune(member, types[name], place, unknown))
        elif name == struct.tag_field:
            kept[name] = member
        elif len(unknown) <= _MAX_NAMES:
            unknown.add(place)
    return msgspec.json.encode(kept)


def _choose(structs: list[inspect.StructType], members: dict[str, msgspec.Raw]) -> inspect.StructType | None:
    """The struct of a union that the object's tag names; the only one of others."""
    first = structs[0]
    if first.tag_field is None:
        return first
    tag = msgspec.json.decode(members.get(first.tag_field, b"null"))
    return next((struct for struct in structs if struct.tag == tag), None)


def _item_type(kind: inspect.Type) -> inspect.Type | None:
    """The type of a list's members, if they have fields."""
    for part in _parts(kind):
        if isinstance(part, inspect.ListType) and (_has_struct(part.item_type) or _item_type(part.item_type)):
            return part.item_type
    return None


def _has_struct(kind: inspect.Type) -> bool:
    return any(isinstance(part, inspect.StructType) for part in _parts(kind))


def _parts(kind: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(kind, inspect.Metadata):
        yield from _parts(kind.type)
    elif isinstance(kind, inspect.UnionType):
        for member in kind.types:
            yield from _parts(member)
    else:
        yield kind
