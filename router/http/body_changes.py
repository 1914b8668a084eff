"""Changes of a body that was read, before its model gets it: the name of the model, and keys of JSON."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from router.http.body_members import BodyFaultError, Member, Members, json_members
from router.model_entry import BodyChanges

if TYPE_CHECKING:
    from mmap import mmap

_MOST_NESTED_BYTES: Final = 1 << 20
"""Of a member of which a member changes."""
_REMOVED: Final = object()


class _Step(NamedTuple):
    """A change of a key; steps are done in their order."""

    key: str
    """Its rest, such as b of `a.b`; empty for the member itself."""
    value: Any
    """_REMOVED to remove it."""
    is_default: bool = False
    """Whether only a body without the key gets the value."""


class Edit(NamedTuple):
    """Replaces a part of the body; edits are in the order of their places."""

    begin: int
    end: int
    text: bytes


def json_edits(body: "bytes | mmap", members: Members, changes: BodyChanges, requested: str | None) -> list[Edit]:
    """The edits of a JSON object; members that are not changed stay as they are written.

    Args:
        requested: the name of the model in the request.

    Raises:
        BodyFaultError: a member in which a key is to be changed is too large.
    """
    steps: list[_Step] = []
    if changes.model is not None and members.last("model") is not None:
        steps.append(_Step("model", changes.model))
    steps += [_Step(key, _REMOVED) for key in changes.strip]
    for params in (changes.set, changes.set_by_name.get(requested or "", {})):
        steps += [_Step(key.removesuffix("?"), value, key.endswith("?")) for key, value in params.items()]
    return _edits(body, members, steps)


def form_edits(members: Members, changes: BodyChanges) -> list[Edit]:
    """The edits of a multipart form, of which only the name of the model changes."""
    if changes.model is None:
        return []
    return [Edit(field.value, field.end, changes.model.encode()) for field in members.all if field.key == "model"]


def _edits(body: "bytes | mmap", members: Members, steps: Sequence[_Step]) -> list[Edit]:
    by_head: dict[str, list[_Step]] = {}
    for step in steps:
        head, _, rest = step.key.partition(".")
        if rest or not step.is_default or head in by_head or members.last(head) is None:
            by_head.setdefault(head, []).append(step._replace(key=rest))
    new = {head: _changed(body, members.last(head), own) for head, own in by_head.items()}
    edits = _removals(members.all, new)
    for member in members.all:
        if (text := new.get(member.key)) is not None:
            edits.append(Edit(member.value, member.end, text))
    known = {member.key for member in members.all}
    added = [
        msgspec.json.encode(key) + b":" + text for key, text in new.items() if text is not None and key not in known
    ]
    if added:
        has_others = any(new.get(key, b"") is not None for key in known)
        edits.append(Edit(members.end, members.end, b"," * has_others + b",".join(added)))
    return sorted(edits)


def _removals(members: Sequence[Member], new: Mapping[str, bytes | None]) -> list[Edit]:
    """Removes members, each with the comma behind it; the last ones with the comma before them."""
    kept = [number for number, member in enumerate(members) if new.get(member.key, b"") is not None]
    last = kept[-1] if kept else -1
    edits = [
        Edit(member.begin, members[number + 1].begin, b"")
        for number, member in enumerate(members[: last + 1])
        if new.get(member.key, b"") is None
    ]
    if last + 1 < len(members):
        edits.append(Edit(members[last].end if kept else members[0].begin, members[-1].end, b""))
    return edits


def _changed(body: "bytes | mmap", member: Member | None, steps: Sequence[_Step]) -> bytes | None:
    """The new value of a member; None if there is none."""
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
    """Of what is no object, nothing is removed, and setting a key replaces it."""
    try:
        members = json_members(text or b"")
    except BodyFaultError:
        if step.value is _REMOVED:
            return text
        text, members = b"{}", Members((), 1)
    assert text is not None
    at, parts = 0, []
    for begin, end, new in _edits(text, members, [step]):
        parts += [text[at:begin], new]
        at = end
    return b"".join([*parts, text[at:]])
