"""Makes the hub's client check what a host sends with a file, because the client itself trusts it.

The client names contents by the hash in the answer, and writes all bytes that arrive.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from base.machine.files import is_safe_name
from startup.files.download.repository import Listing


@contextmanager
def guarded(listing: Listing) -> Iterator[None]:
    """In the block, the client raises ValueError for a file that does not come as listed."""
    from huggingface_hub import file_download

    client: Any = file_download
    describe, fetch = client._get_metadata_or_catch_error, client.http_get

    def describe_checked(**options: Any) -> tuple[Any, ...]:
        url, oid, commit, size, *rest = describe(**options)
        if oid is not None:
            size = _check(listing, options["filename"], oid, commit, size)
        return url, oid, commit, size, *rest

    def fetch_checked(url: str, temp_file: Any, *, expected_size: int | None = None, **options: Any) -> None:
        """Called again, with the limited file, if the client continues after an interruption."""
        if expected_size is not None and not isinstance(temp_file, _Limited):
            temp_file = _Limited(temp_file, expected_size)
        fetch(url, temp_file, expected_size=expected_size, **options)

    client._get_metadata_or_catch_error, client.http_get = describe_checked, fetch_checked
    try:
        yield
    finally:
        client._get_metadata_or_catch_error, client.http_get = describe, fetch


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
