"""The requests of an input file: all lines are checked first, and read again when they are sent."""

import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryFile
from typing import BinaryIO, Final

from base.wording import list_some
from vllm_cli.batch.lines import BatchRequest, LineError, LinePlace
from vllm_cli.errors import ConnectionFailedError, InputError

_MAX_FAULTS: Final = 10
_TIMEOUT_S: Final = 60
_URLS: Final = ("http://", "https://")


class InputFile:
    """A checked file; keeps positions and ids in memory, not the requests."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Reads the file once.

        Raises:
            InputError: a line is not a request, or two lines have the same custom_id.
        """
        self._fd = file.fileno()
        self.places = tuple(_read_places(file, name))

    def read(self, place: LinePlace) -> BatchRequest:
        """The request at a place."""
        return BatchRequest.from_line(os.pread(self._fd, place.num_bytes, place.offset))


@contextmanager
def open_input(name: str) -> Iterator[InputFile]:
    """A file, a URL, or standard input (`-`); the last two are copied to a temporary file."""
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
                raise LineError(f"has the custom_id of line {first}, {request.custom_id!r}; each must be unique")
        except LineError as err:
            faults.append(f"line {number} {err}")
            continue
        if not faults:
            yield LinePlace(request.custom_id, request.id, begin, len(line))
    if faults:
        shown = list_some(faults, _MAX_FAULTS, separator="\n  ")
        raise InputError(f"--input-file {name} is not a batch of requests:\n  {shown}")
