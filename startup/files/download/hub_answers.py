"""Checks the answers of a hub or mirror before the hub's own client acts on them.

The client trusts the hub. It makes folders and files that headers name, and reads listings of any size into
memory. So each response passes `_AnswerCheck` before the client sees it, and each file is compared with the
listing (`guarded`) before anything is written.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, BinaryIO, Final

from base.json_depth import read_json
from base.machine.files import is_safe_name
from base.wording import foreign_line
from startup.files.download import MOST_LISTING_BYTES
from startup.files.download.repository import Listing

_COMMIT_HEADER: Final = "X-Repo-Commit"
_CODINGS: Final = ("", "identity", "gzip", "deflate")
"""Codings of a body of which a piece of 64 KiB becomes at most 64 MiB. Others have no such limit."""
_LEAST_BYTES: Final = 1 << 10
"""What each response counts at least, so that a listing with endless pages ends."""
_MOST_REASON_BYTES: Final = 1 << 14

_own = threading.local()
"""`is_file`: whether the client's current request, on this thread, is for the content of a file."""


def use_checked_client() -> None:
    """Makes the hub's client, in this process, check each response before it reads it."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def create() -> Any:
        client: Any = default_client_factory()
        client.headers["Accept-Encoding"] = "gzip, deflate"
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "response": [*hooks.get("response", ()), _AnswerCheck()]}
        return client

    set_client_factory(create)


class _AnswerCheck:
    """Called with each response, also with a redirect, before its body is read. Raises ValueError."""

    def __init__(self) -> None:
        self._left_bytes = MOST_LISTING_BYTES

    def __call__(self, response: Any) -> None:
        coding = response.headers.get("Content-Encoding", "").strip().lower()
        if coding not in _CODINGS:
            raise ValueError(f"it sends the coding {foreign_line(coding, 40)!r}, which was not asked for")
        if response.status_code >= HTTPStatus.BAD_REQUEST:
            response.headers.pop(_COMMIT_HEADER, None)  # the client would make files with this name
        if getattr(_own, "is_file", False) and response.is_success:
            return  # `fetch_checked` limits the file
        self._read(response)

    def _read(self, response: Any) -> None:
        """Reads the body as `response.read` does, but within the limit."""
        pieces: list[bytes] = []
        self._left_bytes -= _LEAST_BYTES
        for piece in response.iter_bytes():
            pieces.append(piece)
            self._left_bytes -= len(piece)
            if self._left_bytes < 0:
                break
        if self._left_bytes < 0:
            raise ValueError(f"its listings have more than {MOST_LISTING_BYTES >> 20} MiB")
        response._content = b"".join(pieces)  # where the client looks for a body that was read


@contextmanager
def guarded(listing: Listing) -> Iterator[None]:
    """In the block, the client raises ValueError for a file that does not come as listed.

    The client itself names contents by the hash in the answer, and writes all bytes that arrive.
    """
    from huggingface_hub import file_download

    client: Any = file_download
    describe, fetch = client._get_metadata_or_catch_error, client.http_get

    def describe_checked(**options: Any) -> tuple[Any, ...]:
        options.pop("tree_cache_folder", None)  # a list in the cache, of any hub
        url, oid, commit, size, *rest = describe(**options)
        if oid is not None:
            size = _check(listing, options["filename"], oid, commit, size)
        return url, oid, commit, size, *rest

    def fetch_checked(url: str, temp_file: Any, *, expected_size: int | None = None, **options: Any) -> None:
        """Called again, with the limited file, if the client continues after an interruption."""
        if expected_size is not None and not isinstance(temp_file, _Limited):
            temp_file = _Limited(temp_file, expected_size)
        _own.is_file = True
        try:
            fetch(url, temp_file, expected_size=expected_size, **options)
        finally:
            _own.is_file = False

    client._get_metadata_or_catch_error, client.http_get = describe_checked, fetch_checked
    try:
        yield
    finally:
        client._get_metadata_or_catch_error, client.http_get = describe, fetch


def own_reason(response: Any) -> str:
    """Why the hub refuses a request, in its own words on one line. Empty if it does not say so."""
    reason = response.headers.get("X-Error-Message", "")
    content = getattr(response, "_content", b"")
    if not reason and content[:1] == b"{" and len(content) <= _MOST_REASON_BYTES:
        try:
            reason = read_json(content).get("error", "")
        except ValueError:
            return ""
    return foreign_line(reason) if isinstance(reason, str) else ""


def _check(listing: Listing, name: str, oid: str, commit: str, size: int | None) -> int | None:
    """Returns the file's size. Raises ValueError."""
    listed = listing.files[name].size
    if "/" in oid or not is_safe_name(oid):
        raise ValueError(f"{name} has the hash {oid[:80]!r}, which cannot be the name of its content")
    if commit != listing.commit:
        raise ValueError(f"{name} is of the commit {commit[:80]!r} instead of {listing.commit}")
    if listed is not None and size not in (None, listed):
        raise ValueError(f"{name} has {size} bytes, but {listed} are listed")
    return listed if size is None else size


class _Limited:
    """A file for at most so many bytes."""

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        self._file = file
        self._most_bytes = most_bytes

    def write(self, chunk: bytes) -> int:
        if self._file.tell() + len(chunk) > self._most_bytes:
            raise ValueError(f"more than the {self._most_bytes} bytes of the file arrive")
        return self._file.write(chunk)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
