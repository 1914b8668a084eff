"""Changes of a body that was read, before its model gets it: the name of the model, and keys of JSON."""

import codecs
import json
import re
from contextlib import suppress
from typing import Any, Final

import msgspec

from base.json_depth import check_depth, read_json
from startup.router.model_entry import BodyChanges

_MODEL_PART: Final = re.compile(rb'content-disposition:[^\r\n]*[; ]name="?model"?\s*(;|\r|$)', re.IGNORECASE)
_Members = dict[str, msgspec.Raw]
_DECODER: Final = msgspec.json.Decoder(_Members)


def change_json(body: bytes, changes: BodyChanges, requested: str | None) -> bytes:
    """The changed body; values that are not changed stay as they are written.

    What is no JSON object is not changed: the model's server refuses it.

    Args:
        requested: the name of the model in the request.
    """
    members = _members_of(body.removeprefix(codecs.BOM_UTF8))
    if members is None:
        return body
    if changes.model is not None and "model" in members:
        _set(members, "model", changes.model)
    for key in changes.strip:
        _remove(members, key)
    for values in (changes.set, changes.set_by_name.get(requested or "", {})):
        for key, value in values.items():
            _set(members, key, value)
    return msgspec.json.encode(members)


def change_form(body: bytes, changes: BodyChanges, boundary: bytes) -> bytes:
    """The changed body of a multipart form, of which only the name of the model changes."""
    if changes.model is None:
        return body
    parts = body.split(b"--" + boundary)
    for number, part in enumerate(parts):
        head, blank, value = part.partition(b"\r\n\r\n")
        if blank and value.endswith(b"\r\n") and _MODEL_PART.search(head):
            parts[number] = head + blank + changes.model.encode() + b"\r\n"
    return (b"--" + boundary).join(parts)


def _set(members: _Members, key: str, value: Any) -> None:
    """Sets `a`, or b in `a` if the key is `a.b`; an `a` that is no object is replaced."""
    head, _, rest = key.partition(".")
    if rest:
        inner = _members_of(bytes(members.get(head, b""))) or {}
        _set(inner, rest, value)
        value = inner
    members[head] = msgspec.Raw(msgspec.json.encode(value))


def _remove(members: _Members, key: str) -> None:
    head, _, rest = key.partition(".")
    if not rest:
        members.pop(head, None)
    elif (inner := _members_of(bytes(members.get(head, b"")))) is not None:
        _remove(inner, rest)
        members[head] = msgspec.Raw(msgspec.json.encode(inner))


def _members_of(text: bytes) -> _Members | None:
    """The members of an object; NaN, and halves of characters, are no JSON, but vLLM takes them."""
    with suppress(ValueError):
        check_depth(text)
        return _DECODER.decode(text)
    with suppress(ValueError):
        loaded = read_json(text)
        if isinstance(loaded, dict):
            return {key: msgspec.Raw(json.dumps(value).encode()) for key, value in loaded.items()}
    return None
