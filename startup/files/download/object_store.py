"""Reads models from S3, Google Cloud Storage and Azure Blob Storage, with the file systems of fsspec.

`ObjectStoreClient` has the methods of `HubClient`, so the download helper handles stores like the hub. The
stores' own clients read credentials, endpoints and proxies from their variables and files, and from those of
fsspec (`FSSPEC_S3_ENDPOINT_URL`, ~/.config/fsspec).
"""

import asyncio
import base64
import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from startup.files.download.messages import DownloadError
from startup.files.download.repository import PART_ENDING, CachedRepository, HubFile, Listing, keep_safe

if TYPE_CHECKING:
    from concurrent.futures import Future

_NUM_THREADS: Final = 8
_RANGE_BYTES: Final = 4 << 20
_NUM_AHEAD: Final = 3
"""The number of ranges of one file that are requested at once, because a single connection is slow."""
_CONNECT_S: Final = 4.0
_STALL_S: Final = 15.0
"""The most seconds in which a store may send no byte."""
_NUM_ATTEMPTS: Final = 2
"""The attempts of the store's client for each request. The helper makes further attempts and reports why."""
_LONGEST_RANGE_S: Final = 300.0
"""The limit for one range in seconds, while bytes arrive. The stores' clients limit pauses between bytes."""
_GCS_EXTENSIONS: Final = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"
"""Switches on extensions with which gcsfs waits up to a minute for a service that many networks block."""
_ID_BYTES: Final = 20
"""The length of a commit's hash."""
_VERSION_BYTES: Final = 16
_MD5_PREFIX: Final = "md5-"


class ObjectStoreClient:
    """Sends requests to an object store, for callers on any thread. fsspec runs them on its own thread."""

    def list_files(self, repo_id: str, revision: str | None, endpoint: str) -> Listing:
        """Lists the objects below the address `repo_id`. The commit is a hash of their names and versions.

        Raises:
            DownloadError: there are no objects, or they may not be read.
        """
        with _explained(repo_id):
            system = file_system(repo_id)
            prefix = f"{root_of(system, repo_id)}/"
            found: Mapping[str, Mapping[str, Any]] = system.find(prefix, detail=True)
        described: dict[str, HubFile] = {}
        for path, info in found.items():
            if path.startswith(prefix):
                name = path.removeprefix(prefix)
                described[name] = _describe(name, info)
        files = keep_safe(repo_id, described)
        if not files:
            raise DownloadError("refused", f"{repo_id} has no files: correct the address")
        contents = [f"{name} {file.oid} {file.size}" for name, file in sorted(files.items())]
        return Listing(_digest(*contents, size=_ID_BYTES), files, endpoint)

    def fetch(self, repository: CachedRepository, listing: Listing, names: Sequence[str], endpoint: str) -> None:
        """Downloads the files into the snapshot of the listing's commit, and continues killed downloads.

        Raises:
            DownloadError: a request has failed, or an object was replaced meanwhile.
            OSError: the disk is full, or cannot be written to.
        """
        lacking = repository.lacks(listing.commit, [listing.files[name] for name in names])
        missing = {file.oid: file for file in lacking if not repository.blob(file).exists()}
        (repository.folder / "blobs").mkdir(exist_ok=True)
        with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="download") as pool:
            deque(pool.map(partial(_fetch_one, repository), missing.values()))
        for file in lacking:
            path = repository.snapshot(listing.commit) / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.symlink_to(os.path.relpath(repository.blob(file), path.parent))


def _fetch_one(repository: CachedRepository, file: HubFile) -> None:
    address, blob = repository.repo_id, repository.blob(file)
    part = blob.with_name(f"{blob.name}{PART_ENDING}")
    with part.open("a+b") as out:
        for chunk in _read(address, file, out.tell()):
            out.write(chunk)
        out.seek(0)
        is_md5 = file.oid.startswith(_MD5_PREFIX)
        is_wrong = is_md5 and hashlib.file_digest(out, "md5").hexdigest() != file.oid.removeprefix(_MD5_PREFIX)
    with _explained(address):
        system = file_system(address)
        now = _describe(file.name, system.info(f"{root_of(system, address)}/{file.name}"))
    if is_wrong or now != file:
        part.unlink()
        what = "has another MD5 sum than the store reports" if is_wrong else "was replaced during the download"
        raise DownloadError("wrong", f"{file.name} of {address} {what}", 0.0 if is_wrong else None)
    part.replace(blob)


def _read(address: str, file: HubFile, begin: int) -> Iterator[bytes]:
    with _explained(address):
        system = file_system(address)
        yield from read_ranges(system, f"{root_of(system, address)}/{file.name}", begin, file.size or 0)


def file_system(address: str) -> Any:
    """Returns fsspec's file system for an address that begins with `s3://`, `gs://` or `az://`.

    Addresses with the same protocol share it. Raises the errors of the store's client, for example for
    missing credentials.
    """
    os.environ.setdefault(_GCS_EXTENSIONS, "false")
    import fsspec

    protocol = address.partition("://")[0].lower()
    system = fsspec.filesystem(protocol, use_listings_cache=False, **_limits(protocol))
    system.retries = _NUM_ATTEMPTS  # for S3, which makes 25 attempts by default, without reporting them
    return system


def _limits(protocol: str) -> dict[str, Any]:
    if protocol == "s3":
        times = {"connect_timeout": _CONNECT_S, "read_timeout": _STALL_S}
        return {"config_kwargs": {**times, "retries": {"total_max_attempts": 1}}}
    if protocol == "gs":
        import aiohttp

        return {"requests_timeout": aiohttp.ClientTimeout(sock_connect=_CONNECT_S, sock_read=_STALL_S)}
    return {"connection_timeout": int(_CONNECT_S), "read_timeout": int(_STALL_S)}


def root_of(system: Any, address: str) -> str:
    """Returns the bucket and the folder in an address."""
    return str(system._strip_protocol(address)).rstrip("/")


def read_ranges(
    system: Any, path: str, begin: int, end: int, *, longest_range_s: float = _LONGEST_RANGE_S
) -> Iterator[bytes]:
    """Yields the bytes of an object in order. Requests the next ranges ahead.

    Raises the errors of the store's client, and TimeoutError for a range that takes longer than the limit.
    """
    ranges = deque(range(begin, end, _RANGE_BYTES))
    running: deque[Future[bytes]] = deque()
    try:
        while ranges or running:
            while ranges and len(running) < _NUM_AHEAD:
                first = ranges.popleft()
                request = system._cat_file(path, start=first, end=min(first + _RANGE_BYTES, end))
                running.append(asyncio.run_coroutine_threadsafe(request, system.loop))
            chunk = running[0].result(longest_range_s)
            running.popleft()
            yield chunk
    finally:
        for future in running:
            future.cancel()


def _describe(name: str, info: Mapping[str, Any]) -> HubFile:
    """Describes the object as a file. Its `oid` is the MD5 if the store reports one, or else its version.

    The version changes with the content. It is Google's generation number, or another store's ETag.
    """
    tag = info.get("generation") or info.get("ETag") or info.get("etag") or info.get("mtime") or ""
    version, md5 = f"{tag} {info['size']}", _md5_of(info)
    oid = f"{_MD5_PREFIX}{md5}" if md5 else f"version-{_digest(name, version, size=_VERSION_BYTES)}"
    return HubFile(name, int(info["size"]), oid)


def _md5_of(info: Mapping[str, Any]) -> str | None:
    """Returns the MD5 of Google and Azure. None if the store reports none, such as S3."""
    settings = info.get("content_settings") or {}
    encoded = info.get("md5Hash") or settings.get("content_md5")
    if isinstance(encoded, (bytes, bytearray)):
        return encoded.hex()
    if isinstance(encoded, str):
        return base64.b64decode(encoded).hex()
    return None


def _digest(*texts: str, size: int) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=size).hexdigest()


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turns errors of a store's client, inside the block, into errors of a download."""
    try:
        yield
    except Exception as err:
        raise explain(err, address) from err


def explain(err: Exception, address: str, *, verb: str = "read") -> DownloadError:
    """Describes an error of a store's client in one line. The clients' errors have no common class.

    Args:
        err: the client's error.
        address: the address that the client could not read, write or remove.
        verb: the action as a participle: `read`, `written to`.
    """
    name = type(err).__name__
    line = " ".join(str(err).split())
    if not line:
        line = "no answer in time" if isinstance(err, TimeoutError) else name
    if isinstance(err, FileNotFoundError):
        return DownloadError("refused", f"{address} does not exist: correct the address ({line})")
    is_denied = isinstance(err, PermissionError) or "Credential" in name or "Auth" in name
    if is_denied or any(word in line for word in ("Forbidden", "Unauthorized", "AuthenticationFailed")):
        return DownloadError("refused", f"{address} may not be {verb}: check the store's credentials ({line})")
    return DownloadError("unreachable", f"{address} cannot be {verb}: {line}")
