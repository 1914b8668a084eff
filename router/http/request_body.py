"""Reads the body of a request, and changes keys in it before the model's server gets it.

All of it is read, because the model's name may be anywhere in it.
"""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from mmap import ACCESS_READ, mmap
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from router.http.answers import CLOSES, FailedRequestError
from router.http.body_members import NOT_JSON, BodyFaultError, Member, Members, form_fields, json_members, parse_options
from router.model_entry import BodyChanges
from server.http.transport.http_request import Request
from server.terms.held_bytes import HeldBytes
from server.terms.limits import LimitsConfig, flag_of

LONGEST_NAME: Final = 4096
"""The most characters that are kept of a model's name. No model has a longer name."""

_MOST_NESTED_BYTES: Final = 1 << 20
"""The most bytes of a member's value in which the router changes a nested key."""
_REMOVED: Final = object()

Part: TypeAlias = bytes | slice
"""A part of the changed body: new text, or an unchanged slice of the old body."""


class RequestedModel(NamedTuple):
    """The model and the kind of response that a body requests, and why the body cannot be read."""

    name: str | None = None
    is_other_type: bool = False
    """Whether the body's `model` is not a string."""
    is_stream: bool = False
    is_background: bool = False
    """Whether the body requests a background response, which continues without the client."""
    fault: str = ""
    """Why the body cannot be read. The text is the end of a sentence that begins with "The request body"."""
    members: Members = Members()


def boundary_of(media_type: str) -> bytes | None:
    """The boundary of a multipart form. None for other content types, whose bodies are read as JSON."""
    kind, options = parse_options(media_type)
    return options.get(b"boundary") or None if kind == b"multipart/form-data" else None


def find_in_json(body: bytes | mmap) -> RequestedModel:
    """Finds the model's name in a JSON body. A fault of the body is returned, not raised.

    NaN, single surrogates and a byte order mark are not valid JSON. They are accepted, because vLLM accepts
    them.
    """
    try:
        members = json_members(body)
        name, is_other_type = _name_in(body, members.last("model"))
    except BodyFaultError as err:
        return RequestedModel(fault=str(err))
    except ValueError:
        return RequestedModel(fault=NOT_JSON)
    is_stream = _begin_of(body, members.last("stream")) == b"true"
    is_background = _begin_of(body, members.last("background")) == b"true"
    return RequestedModel(name, is_other_type, is_stream, is_background, members=members)


def find_in_form(body: bytes | mmap, boundary: bytes) -> RequestedModel:
    """Finds the model's name in a multipart form. A fault of the body is returned, not raised."""
    try:
        fields = form_fields(body, boundary)
    except BodyFaultError as err:
        return RequestedModel(fault=str(err))
    field = fields.last("model")
    name = None
    if field is not None:
        content = body[field.value : field.end]
        name = content.decode("utf-8", "replace")[:LONGEST_NAME]
    stream = _begin_of(body, fields.last("stream")).strip().lower()
    is_stream = stream in (b"true", b"1", b"on", b"yes")
    return RequestedModel(name, is_stream=is_stream, members=fields)


def _name_in(body: bytes | mmap, member: Member | None) -> tuple[str | None, bool]:
    """The model's name, and whether the member has a value that is not a string."""
    if (begin := _begin_of(body, member)) in (b"", b"null"):
        return None, False
    if member is None or begin[:1] != b'"':
        return None, True
    text = body[member.value : min(member.end, member.value + 6 * LONGEST_NAME)]
    if len(text) < member.end - member.value:
        return text[1:].decode("utf-8", "replace")[:LONGEST_NAME], False
    return json.loads(text)[:LONGEST_NAME], False


def _begin_of(body: bytes | mmap, member: Member | None) -> bytes:
    return b"" if member is None else body[member.value : min(member.end, member.value + 16)]


_MOST_IN_MEMORY: Final = 1 << 20
"""The most bytes of a body in memory. A longer body is in an unlinked temporary file, which threads read."""
_READ_BACK_BYTES: Final = 256 << 10
_MOST_ON_LOOP: Final = 4 << 10
"""The most bytes of a body that are searched on the event loop. Longer bodies would take more than 2 ms."""
_LOOSE_BYTES: Final = 256 << 10
"""The most bytes of a body in another encoding than UTF-8. vLLM accepts all encodings of JSON."""


class BodyRoom:
    """The limits for the memory and threads of all bodies together."""

    def __init__(self, limits: LimitsConfig, held: HeldBytes | None = None) -> None:
        """`held` counts the bodies together with the requests that wait on connections."""
        self.limits = limits
        self.held = held or HeldBytes(limits.max_held_bytes)
        self.searching = {is_in_memory: asyncio.Semaphore(2) for is_in_memory in (True, False)}
        """At most two threads search bodies in memory, and two more in files. More would delay the loop."""


def _create_file() -> "tempfile.SpooledTemporaryFile[bytes]":
    return tempfile.SpooledTemporaryFile(max_size=_MOST_IN_MEMORY, prefix="vllm-cli-body-")


class ForwardedBody:
    """The body of one request. The caller must close it."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self._file = _create_file()
        self.num_bytes = 0

    def check_length(self, announced: int) -> None:
        """Raises FailedRequestError if the length in the request's head is above the limit."""
        most = self._room.limits.max_body_bytes
        if announced > most:
            message = f"The request body is larger than {most} bytes ({flag_of('max_body_bytes')})."
            raise FailedRequestError(413, message, headers=CLOSES)

    async def read(self, request: Request) -> None:
        """Reads the whole body. Raises FailedRequestError."""
        try:
            while parts := await request.read():
                await self._keep(b"".join(parts))
        except OSError as err:
            raise _not_kept(err) from err

    async def _keep(self, part: bytes) -> None:
        self.num_bytes += len(part)
        self._room.held.num_admitted += len(part)
        self.check_length(self.num_bytes)
        most = self._room.limits.max_held_bytes
        held = self._room.held
        if most is not None and held.num_admitted + held.num_waiting > most:
            text = f"The bodies of other requests take all room ({flag_of('max_held_bytes')}): try it again later."
            raise FailedRequestError(503, text)
        if self._is_in_memory:
            self._file.write(part)
        else:
            await asyncio.to_thread(self._file.write, part)

    async def find_model(self, media_type: str) -> RequestedModel:
        """Finds the model's name and the body's fault."""
        boundary = boundary_of(media_type)
        if self.num_bytes <= _MOST_ON_LOOP:
            return self._find(boundary)
        async with self._room.searching[self._is_in_memory]:
            return await asyncio.to_thread(self._find, boundary)

    async def change(self, changes: BodyChanges, requested: RequestedModel, media_type: str) -> None:
        """Changes the body before the model's server gets it. Raises FailedRequestError."""
        is_form = boundary_of(media_type) is not None

        def run() -> None:
            with self._content() as content:
                if is_form:
                    parts = form_parts(content, requested.members, changes)
                else:
                    parts = json_parts(content, requested.members, changes, requested.name)
            self._rewrite(parts)

        if requested.fault:
            return
        try:
            await asyncio.to_thread(run)
        except BodyFaultError as err:
            raise FailedRequestError(400, f"The request body {err}.") from err
        except OSError as err:
            raise _not_kept(err) from err

    def close(self) -> None:
        self._room.held.num_admitted -= self.num_bytes
        self.num_bytes = 0
        self._file.close()

    def data(self) -> bytes | AsyncIterator[bytes] | None:
        """The body for aiohttp's client. None if it is empty. Each try of the request calls this method."""
        if not self.num_bytes:
            return None
        return self._bytes() if self._is_in_memory else self._stream()

    @property
    def _is_in_memory(self) -> bool:
        return self.num_bytes <= _MOST_IN_MEMORY

    def _bytes(self) -> bytes:
        self._file.seek(0)
        return self._file.read()

    @contextmanager
    def _content(self) -> Iterator[bytes | mmap]:
        if self._is_in_memory:
            yield self._bytes()
            return
        self._file.flush()
        with mmap(self._file.fileno(), 0, access=ACCESS_READ) as content:
            yield content

    def _find(self, boundary: bytes | None) -> RequestedModel:
        if boundary is None and self.num_bytes <= _LOOSE_BYTES:
            self._make_utf8()
        with self._content() as content:
            return find_in_json(content) if boundary is None else find_in_form(content, boundary)

    def _make_utf8(self) -> None:
        content = self._bytes()
        encoding = json.detect_encoding(content)
        if not encoding.startswith("utf-8"):
            with suppress(UnicodeError):
                self._rewrite([content.decode(encoding).encode()])

    def _rewrite(self, parts: Sequence[Part]) -> None:
        changed = _create_file()
        for part in parts:
            if isinstance(part, bytes):
                changed.write(part)
                continue
            self._file.seek(part.start)
            for at in range(part.start, part.stop, _READ_BACK_BYTES):
                changed.write(self._file.read(min(part.stop - at, _READ_BACK_BYTES)))
        self._file.close()
        self._file = changed
        self._room.held.num_admitted += changed.tell() - self.num_bytes
        self.num_bytes = changed.tell()

    async def _stream(self) -> AsyncIterator[bytes]:
        await asyncio.to_thread(self._file.seek, 0)
        while part := await asyncio.to_thread(self._file.read, _READ_BACK_BYTES):
            yield part


def _not_kept(err: OSError) -> FailedRequestError:
    return FailedRequestError(503, f"The request's body cannot be kept: {err.strerror}.")


class _Step(NamedTuple):
    """One change of a key. The changes of a body are made in order."""

    key: str
    """The key without its first part, such as b for `a.b`. Empty if the whole member changes."""
    value: Any
    """The new value, or _REMOVED."""
    is_default: bool = False
    """Whether the value is set only if the body lacks the key."""


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
        for key, value in params.items():
            steps.append(_Step(key.removesuffix("?"), value, is_default=key.endswith("?")))
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
    parts = _parts(before, members, [step])
    return b"".join(before[part] if isinstance(part, slice) else part for part in parts)
