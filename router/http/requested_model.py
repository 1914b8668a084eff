"""What the router reads in a body: which model it requests, and whether the response will be a stream."""

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from router.http.body_members import NOT_JSON, BodyFaultError, Member, Members, form_fields, json_members, parse_options

if TYPE_CHECKING:
    from mmap import mmap

LONGEST_NAME: Final = 4096
"""Characters of a model's name that are kept; a longer name is the name of no model."""


class RequestedModel(NamedTuple):
    """What a body says."""

    name: str | None = None
    is_other_type: bool = False
    """Whether `model` has a value that is not a text."""
    is_stream: bool = False
    is_background: bool = False
    """Whether a response goes on without the client."""
    fault: str = ""
    """Why the body cannot be read, behind "The request body"."""
    members: Members = Members()


def boundary_of(media_type: str) -> bytes | None:
    """The boundary, if this Content-Type is that of a multipart form; all else is taken for JSON."""
    kind, options = parse_options(media_type)
    return options.get(b"boundary") or None if kind == b"multipart/form-data" else None


def find_in_json(body: "bytes | mmap") -> RequestedModel:
    """Reads a body of JSON; whatever is wrong with it, no error is raised.

    NaN, halves of characters and a byte order mark are no JSON, but vLLM takes them.
    """
    try:
        members = json_members(body)
        name, is_other_type = _name_in(body, members.last("model"))
    except BodyFaultError as err:
        return RequestedModel(fault=str(err))
    except ValueError:
        return RequestedModel(fault=NOT_JSON)
    is_stream, is_background = (_begin_of(body, members.last(key)) == b"true" for key in ("stream", "background"))
    return RequestedModel(name, is_other_type, is_stream, is_background, members=members)


def find_in_form(body: "bytes | mmap", boundary: bytes) -> RequestedModel:
    """Reads a multipart form; whatever is wrong with it, no error is raised."""
    try:
        fields = form_fields(body, boundary)
    except BodyFaultError as err:
        return RequestedModel(fault=str(err))
    field = fields.last("model")
    name = None if field is None else body[field.value : field.end].decode("utf-8", "replace")[:LONGEST_NAME]
    is_stream = _begin_of(body, fields.last("stream")).strip().lower() in (b"true", b"1", b"on", b"yes")
    return RequestedModel(name, is_stream=is_stream, members=fields)


def _name_in(body: "bytes | mmap", member: Member | None) -> tuple[str | None, bool]:
    """The name, and whether there is a value of another type instead."""
    if (begin := _begin_of(body, member)) in (b"", b"null"):
        return None, False
    if member is None or begin[:1] != b'"':
        return None, True
    text = body[member.value : min(member.end, member.value + 6 * LONGEST_NAME)]
    if len(text) < member.end - member.value:
        return text[1:].decode("utf-8", "replace")[:LONGEST_NAME], False
    return json.loads(text)[:LONGEST_NAME], False


def _begin_of(body: "bytes | mmap", member: Member | None) -> bytes:
    return b"" if member is None else body[member.value : min(member.end, member.value + 16)]
