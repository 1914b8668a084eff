"""Reads the requests of an input file. Checks all lines first, and reads a line again to send its request."""

import hashlib
import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Final, NamedTuple

from base.json_depth import read_json
from base.wording import list_some
from startup.words.errors import InputError
from vllm_cli.errors import ConnectionFailedError

ENDPOINTS: Final = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/score", "/v1/score", "/rerank", "/v1/rerank",
    "/v2/rerank", "/pooling", "/classify", "/tokenize", "/detokenize",
)  # fmt: skip
"""The URLs that a request may use. An input file cannot reach a server's other routes."""

_NUM_DIGITS: Final = 32
_MAX_FAULTS: Final = 10
_TIMEOUT_S: Final = 60
_URLS: Final = ("http://", "https://")


class LinePlace(NamedTuple):
    """The position of a request in the input file, and the id of its result."""

    custom_id: str
    id: str
    offset: int
    num_bytes: int

    @property
    def request_id(self) -> str:
        """The request id that appears in the server's log."""
        return self.id.replace("vllm-", "vllm-batch-", 1)


class LineError(ValueError):
    """A line that is not a request. The message has the reason."""


@dataclass(frozen=True)
class BatchRequest:
    """A request and the id of its result."""

    custom_id: str
    method: str
    url: str
    body: dict[str, Any]

    @classmethod
    def from_line(cls, line: bytes) -> "BatchRequest":
        """Raises LineError if the line is not a request."""
        try:
            fields = read_json(line)
        except ValueError as err:
            raise LineError(f"is not JSON ({err})") from err
        if not isinstance(fields, dict):
            raise LineError("is not a JSON object")
        return cls(
            custom_id=_take(fields, "custom_id", str, "a text"),
            method=_take(fields, "method", str, "a text"),
            url=_take(fields, "url", str, "a text"),
            body=_take(fields, "body", dict, "an object"),
        )

    @property
    def id(self) -> str:
        """A hash of the request's content. It is the same in every run until the request changes."""
        content = json.dumps([self.custom_id, self.method, self.url, self.body], sort_keys=True)
        return f"vllm-{hashlib.sha256(content.encode()).hexdigest()[:_NUM_DIGITS]}"

    @property
    def rejection(self) -> str | None:
        """Why the request is not sent. None if it is sent."""
        if self.method != "POST":
            return f"Method {self.method} was used. Only POST is supported."
        if self.url not in ENDPOINTS:
            return f"URL {self.url} was used. Supported endpoints: {', '.join(ENDPOINTS)}."
        if self.body.get("stream"):
            return "Request must not be sent in stream mode"
        return None


def _take(fields: dict[str, Any], name: str, kind: type[Any], wanted: str) -> Any:
    if name not in fields:
        raise LineError(f"has no {name!r}")
    value = fields[name]
    if not isinstance(value, kind) or not (value or kind is dict):
        raise LineError(f"has {json.dumps(value)[:60]} as {name!r}, which must be {wanted}")
    return value


class InputFile:
    """A checked input file. Only positions and ids of the requests stay in memory."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Reads the file once.

        Raises:
            InputError: a line is not a request, or two lines have the same custom_id.
        """
        self._fd = file.fileno()
        self.places = tuple(_read_places(file, name))

    def read(self, place: LinePlace) -> BatchRequest:
        return BatchRequest.from_line(os.pread(self._fd, place.num_bytes, place.offset))


@contextmanager
def open_input(name: str) -> Iterator[InputFile]:
    """Opens a file, a URL, or standard input (`-`). URL and standard input are copied to a temporary file."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(_open(name))
        except OSError as err:
            message = f"--input-file {name} cannot be read: {getattr(err, 'strerror', None) or err}."
            raise (ConnectionFailedError if name.startswith(_URLS) else InputError)(message) from err
        yield InputFile(file, name)


def _open(name: str) -> BinaryIO:
    if name == "-":
        return _copy(sys.stdin.buffer)
    if name.startswith(_URLS):
        with urllib.request.urlopen(name, timeout=_TIMEOUT_S) as response:
            return _copy(response)
    file = open(name, "rb")  # noqa: SIM115, PTH123 - the caller's stack closes it
    return file if file.seekable() else _copy(file)


def _copy(source: BinaryIO) -> BinaryIO:
    copy = TemporaryFile()  # noqa: SIM115 - the caller's stack closes it
    shutil.copyfileobj(source, copy)
    copy.seek(0)
    return copy


def _read_places(file: BinaryIO, name: str) -> Iterator[LinePlace]:
    lines_of: dict[str, int] = {}
    faults: list[str] = []
    offset = 0
    for number, line in enumerate(file, 1):
        begin, offset = offset, offset + len(line)
        if not line.strip():
            continue
        try:
            request = BatchRequest.from_line(line)
            if (first := lines_of.setdefault(request.custom_id, number)) != number:
                raise LineError(f"has the custom_id of line {first}, {request.custom_id!r}, but each must be unique")
        except LineError as err:
            faults.append(f"line {number} {err}")
            continue
        if not faults:
            yield LinePlace(request.custom_id, request.id, begin, len(line))
    if faults:
        shown = list_some(faults, _MAX_FAULTS, separator="\n  ")
        raise InputError(f"--input-file {name} is not a batch of requests:\n  {shown}")
