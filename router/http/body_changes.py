"""Changes the name of the model and other keys in a request's body, before the model's server gets it."""

from collections.abc import Sequence
from mmap import mmap
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from router.http.body_members import BodyFaultError, Member, Members, json_members
from router.model_entry import BodyChanges

_MOST_NESTED_BYTES: Final = 1 << 20
"""The most bytes of a member's value in which the router changes a nested key."""
_REMOVED: Final = object()


class _Step(NamedTuple):
    """One change of a key. The changes of a body are made in order."""

    key: str
    """The key without its first part, such as b for `a.b`. Empty if the whole member changes."""
    value: Any
    """The new value, or _REMOVED."""
    is_default: bool = False
    """Whether the value is set only if the body lacks the key."""


Part: TypeAlias = bytes | slice
"""A part of the changed body: new text, or an unchanged slice of the old body."""


def json_parts(body: bytes | mmap, members: Members, changes: BodyChanges, requested: str | None) -> Sequence[Part]:
    """Returns the parts of the changed JSON object. `requested` is the model's name in the request.

    Raises:
        BodyFaultError: a member in which a key must change is too large.
    """
    steps: list[_Step] = []
    if changes.model is not None and members.last("model") is not None:
        steps.append(_Step("model", changes.model))
    steps += [_Step(key, _REMOVED) for key in changes.strip]
    for params in (changes.set, changes.set_by_name.get(requested or "", {})):
        steps += [_Step(key.removesuffix("?"), value, key.endswith("?")) for key, value in params.items()]
    return _parts(body, members, steps)


def form_parts(body: bytes | mmap, members: Members, changes: BodyChanges) -> Sequence[Part]:
    """Returns the parts of the multipart form. In a form, only the name of the model can change."""
    parts: list[Part] = []
    at = 0
    for field in members.all:
        if field.key == "model" and changes.model is not None:
            parts += [slice(at, field.value), changes.model.encode()]
            at = field.end
    return [*parts, slice(at, len(body))]


def _parts(body: bytes | mmap, members: Members, steps: Sequence[_Step]) -> Sequence[Part]:
    by_head: dict[str, list[_Step]] = {}
    for step in steps:
        head, _, rest = step.key.partition(".")
        if rest or not step.is_default or head in by_head or members.last(head) is None:
            by_head.setdefault(head, []).append(step._replace(key=rest))
    if not by_head:
        return [slice(0, len(body))]
    new = {head: _changed(body, members.last(head), own) for head, own in by_head.items()}
    parts: list[Part] = []
    last_end = 0
    for member in members.all:
        comma, last_end = slice(last_end, member.begin), member.end
        if member.key not in new:
            parts += [comma, slice(member.begin, member.end)]
        elif (text := new[member.key]) is not None:
            parts += [comma, slice(member.begin, member.value), text]
    known = {member.key for member in members.all}
    for key, text in new.items():
        if text is not None and key not in known:
            parts += [b",", msgspec.json.encode(key), b":", text]
    return [b"{", *parts[1:], b"}"]


def _changed(body: bytes | mmap, member: Member | None, steps: Sequence[_Step]) -> bytes | None:
    """The new value of a member. None if the member is missing or removed."""
    text: bytes | None = None
    if member is not None and any(step.key for step in steps):
        if member.end - member.value > _MOST_NESTED_BYTES:
            limit = f"{_MOST_NESTED_BYTES >> 20} MiB"
            raise BodyFaultError(f"has more than {limit} in {member.key!r}, of which the router has to change a key")
        text = body[member.value : member.end]
    is_there = member is not None
    for step in steps:
        if step.key:
            text = _changed_inside(text, step)
        elif not (step.is_default and is_there):
            text = None if step.value is _REMOVED else msgspec.json.encode(step.value)
        is_there = text is not None
    return text


def _changed_inside(text: bytes | None, step: _Step) -> bytes | None:
    """Changes a key in the text of a member. If the text is not an object, a new object replaces it."""
    before = text or b""
    try:
        members = json_members(before)
    except BodyFaultError:
        if step.value is _REMOVED:
            return text
        members = Members()
    return b"".join(before[part] if isinstance(part, slice) else part for part in _parts(before, members, [step]))
