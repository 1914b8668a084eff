"""What the router reads in a body: which model it requests, and whether the response will be a stream."""

from typing import IO, Any, Final, NamedTuple

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from base.json_depth import check_depth, read_json

LONGEST_NAME: Final = 4096
"""Characters of a model's name that are kept; a longer name is the name of no model."""
_LONGEST_MEDIA_TYPE: Final = 1024
"""A longer Content-Type is ignored: a boundary has at most 70 characters, and parsing is quadratic."""
_MOST_PARTS: Final = 1000
"""Of a form, as in Starlette."""
_READ_BYTES: Final = 64 << 10
_LOOSE_BYTES: Final = 256 << 10
"""A body up to this size is also read as Python does, which takes some milliseconds."""


class RequestedModel(NamedTuple):
    """What a body says."""

    name: str | None = None
    is_other_type: bool = False
    """Whether `model` has a value that is not a text."""
    is_stream: bool = False
    is_background: bool = False
    """Whether a response goes on without the client."""
    is_invalid: bool = False
    """Whether the body is no JSON object, or no form."""


class _Members(msgspec.Struct):
    """The members of an object that matter; of equal ones the last."""

    model: msgspec.Raw = msgspec.Raw(b"null")
    stream: msgspec.Raw = msgspec.Raw(b"false")
    background: msgspec.Raw = msgspec.Raw(b"false")


_DECODER: Final = msgspec.json.Decoder(_Members)


def boundary_of(media_type: str) -> bytes | None:
    """The boundary, if this Content-Type is that of a multipart form; all else is taken for JSON."""
    if len(media_type) > _LONGEST_MEDIA_TYPE or not media_type.isascii():
        return None
    kind, options = parse_options_header(media_type)
    return options.get(b"boundary") or None if kind == b"multipart/form-data" else None


def find_in_json(body: Any) -> RequestedModel:
    """Reads a body of JSON, a buffer of bytes; whatever is wrong with it, no error is raised.

    NaN, halves of characters and a byte order mark are no JSON, but vLLM takes them.
    """
    try:
        check_depth(body)
        members = _DECODER.decode(body)
        model = msgspec.json.decode(members.model)
        is_stream, is_background = (bytes(raw) == b"true" for raw in (members.stream, members.background))
    except ValueError:
        if len(body) > _LOOSE_BYTES:
            return RequestedModel(is_invalid=True)
        return _find_loosely(bytes(body))
    return _requested(model, is_stream=is_stream)._replace(is_background=is_background)


def find_in_form(body: IO[bytes], boundary: bytes) -> RequestedModel:
    """Reads a multipart form; whatever is wrong with it, no error is raised."""
    fields: dict[bytes | None, bytes] = {}
    num_parts = 0

    def count() -> None:
        nonlocal num_parts
        num_parts += 1
        if num_parts > _MOST_PARTS:
            raise FormParserError(f"more than {_MOST_PARTS} parts")

    def keep(field: Field) -> None:
        count()
        if field.field_name in (b"model", b"stream"):
            fields[field.field_name] = field.value or b""

    def drop(file: File) -> None:
        file.close()
        count()

    try:
        parser = FormParser("multipart/form-data", keep, drop, boundary=boundary)
        while part := body.read(_READ_BYTES):
            parser.write(part)
    except FormParserError:
        return RequestedModel(is_invalid=True)
    name = fields[b"model"].decode("utf-8", "replace") if b"model" in fields else None
    is_stream = fields.get(b"stream", b"").strip().lower() in (b"true", b"1", b"on", b"yes")
    return _requested(name, is_stream=is_stream)


def _find_loosely(body: bytes) -> RequestedModel:
    try:
        found = read_json(body)
    except ValueError:
        return RequestedModel(is_invalid=True)
    if not isinstance(found, dict):
        return RequestedModel(is_invalid=True)
    requested = _requested(found.get("model"), is_stream=found.get("stream") is True)
    return requested._replace(is_background=found.get("background") is True)


def _requested(model: Any, *, is_stream: bool) -> RequestedModel:
    name = model[:LONGEST_NAME] if isinstance(model, str) else None
    return RequestedModel(name, is_other_type=not isinstance(model, str | None), is_stream=is_stream)
