"""A fake Hugging Face hub with real repositories and scripted faults, for the hub's own client.

Like the real hub, it has two addresses. One serves the API and small files, the other serves files in LFS.
"""

import hashlib
import json
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.support.http_server import LocalServer, QuietHandler, serving

CDN_HOST: Final = "127.0.0.2"
"""The host that serves LFS. The hub is at 127.0.0.1, so clients must not send their token to this host."""
_LFS_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_LFS_FROM_BYTES: Final = 10_000_000
_SEND_BUFFER_BYTES: Final = 256 << 10
"""The buffer is small, so that a killed client has received nearly all bytes that count as sent."""
_PIECE_S: Final = 0.01
"""Seconds that one piece of a file takes at the rate of `Link`. Connections take turns after each piece."""
_PIECE_BYTES: Final = (1 << 10, 1 << 20)
"""The smallest and the largest size of a piece of a file."""
_LATENESS_S: Final = 0.05
"""A sender that wakes up late may catch up on at most this time. There are no other bursts."""


class HubFile(NamedTuple):
    """One file of a repository. Large files and weights are in LFS, as on the hub."""

    name: str
    content: bytes
    is_lfs: bool
    sha256: str
    etag: str
    """The SHA-256 of a file in LFS. For any other file, git's object id."""
    pointer_size: int

    @classmethod
    def of(cls, name: str, content: bytes) -> "HubFile":
        size, sha256 = len(content), hashlib.sha256(content).hexdigest()
        is_lfs = name.endswith(_LFS_SUFFIXES) or size >= _LFS_FROM_BYTES
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        blob_id = hashlib.sha1(b"blob %d\0" % size + content).hexdigest()
        return cls(name, content, is_lfs, sha256, sha256 if is_lfs else blob_id, len(pointer))

    def describe(self, name: str, blob_id: str) -> dict[str, Any]:
        """The entry of a listing. The names of some fields depend on the listing."""
        lfs = {"size": len(self.content), "pointerSize": self.pointer_size}
        described = {name: self.name, "size": len(self.content), blob_id: self.etag}
        sha256 = "sha256" if blob_id == "blobId" else "oid"
        return described | ({"lfs": {sha256: self.sha256, **lfs}} if self.is_lfs else {})


class HubCommit:
    def __init__(self, files: Mapping[str, bytes] | Path, commit: str | None = None) -> None:
        """`files` may be a folder. Its links are followed, because snapshots in a hub's cache have links."""
        if isinstance(files, Path):
            found = (path for path in files.rglob("*") if path.is_file() and ".git" not in path.parts)
            files = {str(path.relative_to(files)): path.read_bytes() for path in found}
        self.files = {name: HubFile.of(name, content) for name, content in sorted(files.items())}
        self._commit = commit

    @cached_property
    def id(self) -> str:
        """The given hash, or else a hash of the names and contents of all files."""
        text = json.dumps([(file.name, file.etag) for file in self.files.values()])
        return self._commit or hashlib.sha1(text.encode()).hexdigest()

    @property
    def size(self) -> int:
        return sum(len(file.content) for file in self.files.values())


@dataclass
class Fault:
    """One fault. It occurs for the next `times` requests that match.

    stall: after `after` bytes of the response, nothing more is sent, and the connection stays open.
    cut: after `after` bytes of the response, the connection is closed.
    reset: like `cut`, with a reset.
    short: the response has only the first `after` bytes of the file, and its headers agree with that.
    status: the answer has this `status`, and if given the hub's error `code` and `retry_after` seconds.
    """

    kind: Literal["stall", "cut", "reset", "short", "status"]
    times: int | None = 1
    """How many requests have the fault. None means all."""
    path: str = "*"
    """A pattern of repository and file, such as `org/model/*.safetensors`.

    For the kind `status`, a pattern of the whole path of a request, such as `api/*` or `*/resolve/*`.
    """
    method: str = "*"
    after: int = 0
    status: int = 504
    code: str = ""
    retry_after: int | None = None


class Faults:
    """The faults that have not occurred yet. Many threads use this object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def take(self, method: str, path: str, num_bytes: int | None = None) -> Fault | None:
        """Takes a fault for a request. With `num_bytes`, takes one that occurs within this many bytes."""
        with self._lock:
            for fault in self._faults:
                is_meant = (
                    fault.kind == "status" if num_bytes is None else fault.kind != "status" and num_bytes > fault.after
                )
                if is_meant and fault.times != 0 and fnmatch(method, fault.method) and fnmatch(path, fault.path):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None


class Link:
    """Delays senders so that all connections together do not exceed a rate.

    Each `take` reserves the next part of the link's time, so that senders are served in order. Only bodies
    of files count, not headers.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free_from_s = 0.0
        self.bytes_per_s: float | None = None
        """None means unlimited. The rate may be changed at any time."""

    def take(self, wanted_bytes: int) -> int:
        """Waits until the link may send the next bytes. Returns how many bytes these are."""
        least, most = _PIECE_BYTES
        rate = self.bytes_per_s
        if rate is None:
            return min(wanted_bytes, most)
        num_bytes = min(wanted_bytes, max(int(rate * _PIECE_S), least), most)
        with self._lock:
            now = time.monotonic()
            self._free_from_s = max(self._free_from_s, now - _LATENESS_S) + num_bytes / rate
            wait_s = self._free_from_s - now
        if wait_s > 0:
            time.sleep(wait_s)
        return num_bytes


class Lie(NamedTuple):
    """An answer that a hostile hub gives. Headers with empty values are left out."""

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""


@dataclass
class SeenRequest:
    """One request, and the status of its answer."""

    host: Literal["hub", "cdn"]
    method: str
    path: str
    """The path as it was sent, without the query."""
    range: str | None
    token: str | None
    """The whole `Authorization` header."""
    status: int | None = None

    @property
    def downloaded(self) -> str | None:
        """`repository/file` if the request was for a file's content, else None."""
        path = unquote(self.path).strip("/")
        if self.host == "cdn":
            return path.partition("/")[2]
        model_id, action, rest = _split(path, "resolve")
        return f"{model_id}/{rest.partition('/')[2]}" if action else None


class HubServer:
    """Repositories, faults and counters. The fields may be changed while the server runs."""

    def __init__(self) -> None:
        self.revisions: dict[str, dict[str, HubCommit]] = {}
        """Repository -> branch -> commit. Requests find a commit by its hash, too."""
        self.gated: set[str] = set()
        """Repositories whose files need `token`. Their listings need no token."""
        self.private: set[str] = set()
        """Repositories that exist only for requests with `token`."""
        self.token: str | None = None
        """If a token is set, requests with any other token are refused."""
        self.renamed: dict[str, str] = {}
        self.lists_contents = True
        """Whether listings have sizes and hashes, which some mirrors leave out."""
        self.is_xet = False
        """Whether files in LFS are in Xet storage, too. Then answers also have the headers of Xet."""
        self.sends: dict[str, str] = {}
        """Headers that replace those of answers with files. Empty values leave headers out."""
        self.body: bytes | None = None
        """What answers contain instead of any file."""
        self.lies: Callable[[SeenRequest], Lie | None] = lambda _: None
        """An answer of this function replaces the hub's own answer to the request."""
        self.may_answer = threading.Event()
        """While this event is cleared, no request is answered."""
        self.may_answer.set()
        self.link = Link()
        self.faults = Faults()
        self.requests: list[SeenRequest] = []
        self.sent: Counter[str] = Counter()
        """`repository/file` -> number of bytes sent of this file."""
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self._servers = [_Listener(self, "hub", "127.0.0.1"), _Listener(self, "cdn", CDN_HOST)]

    @property
    def url(self) -> str:
        """The value for `HF_ENDPOINT`."""
        return self._servers[0].url

    @property
    def cdn_url(self) -> str:
        return self._servers[1].url

    def add(
        self,
        model_id: str,
        files: Mapping[str, bytes] | Path,
        *,
        revision: str = "main",
        commit: str | None = None,
    ) -> HubCommit:
        """Adds a repository, or a branch of a repository. Replaces an existing branch."""
        added = HubCommit(files, commit)
        self.revisions.setdefault(model_id, {})[revision] = added
        return added

    def find(self, model_id: str, revision: str) -> HubCommit | None:
        branches = self.revisions.get(model_id, {})
        by_id = {commit.id: commit for commit in branches.values()}
        return branches.get(revision) or by_id.get(revision)

    def find_content(self, sha256: str) -> HubFile | None:
        """The file in LFS whose content has this SHA-256."""
        commits = (commit for branches in self.revisions.values() for commit in branches.values())
        files = (file for commit in commits for file in commit.files.values())
        return next((file for file in files if file.is_lfs and file.sha256 == sha256), None)

    @property
    def downloads(self) -> list[str]:
        """`repository/file` of each GET that was answered with content, in order."""
        sent = [seen for seen in self.requests if seen.method == "GET" and seen.status in (200, 206)]
        return [name for seen in sent if (name := seen.downloaded)]

    @property
    def ranges(self) -> list[int]:
        """The offset of each part of a file that was sent. Files that were sent whole do not count."""
        parts = [seen.range for seen in self.requests if seen.method == "GET" and seen.status == 206]
        return [int(text.removeprefix("bytes=").partition("-")[0] or 0) for text in parts if text]

    @property
    def tokens(self) -> dict[str, set[str | None]]:
        """The tokens that each host received, with None for a request without a token."""
        tokens: dict[str, set[str | None]] = {"hub": set(), "cdn": set()}
        for seen in self.requests:
            tokens[seen.host].add(seen.token)
        return tokens

    def reset(self) -> None:
        self.requests.clear()
        self.sent.clear()

    @contextmanager
    def serving(self) -> Iterator["HubServer"]:
        """Serves in threads. At the end of the block, closes open connections."""
        with ExitStack() as stack:
            for server in self._servers:
                stack.enter_context(serving(server))
            try:
                yield self
            finally:
                self.closing.set()
                self.may_answer.set()


class _Listener(LocalServer):
    """The server at one of the two addresses, with a thread for each connection."""

    daemon_threads = False
    request_queue_size = 256

    def __init__(self, hub: HubServer, role: Literal["hub", "cdn"], host: str) -> None:
        self.hub = hub
        self.role = role
        self._connections: set[socket.socket] = set()
        super().__init__(_Handler, 0, host=host)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Ends the threads that wait for a further request, or for a client that does not read."""
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, **headers}


class _Handler(QuietHandler):
    server: _Listener
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        super().setup()

    def do_GET(self) -> None:
        url, hub = urlsplit(self.path), self.server.hub
        self._hub, self._token = hub, self.headers["Authorization"]
        self._seen = SeenRequest(self.server.role, self.command, url.path, self.headers["Range"], self._token)
        hub.requests.append(self._seen)
        hub.may_answer.wait()
        try:
            if fault := hub.faults.take(self.command, url.path.strip("/")):
                after = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                raise _Refusal(fault.status, fault.code, **after)
            if lie := hub.lies(self._seen):
                self._answer(lie.status, lie.body, lie.headers)
            elif self.server.role == "cdn":
                self._send_content(url.path)
            elif url.path.startswith("/api/models/"):
                self._describe(url.path.removeprefix("/api/models/"), has_blobs="blobs" in parse_qs(url.query))
            else:
                self._resolve(url.path)
        except _Refusal as refusal:
            self._answer(refusal.status, headers=refusal.headers)

    do_HEAD = do_GET

    # Listings

    def _describe(self, path: str, *, has_blobs: bool) -> None:
        model_id, action, revision = _split(path, "revision", "tree")
        commit = self._find(model_id, unquote(revision) or "main")
        files = commit.files.values()
        if action == "tree":  # always with all folders
            self._answer(200, [{"type": "file"} | file.describe("path", "oid") for file in files])
        else:
            is_full = has_blobs and self._hub.lists_contents
            described = [
                file.describe("rfilename", "blobId") if is_full else {"rfilename": file.name} for file in files
            ]
            gate: Any = "manual" if model_id in self._hub.gated else False
            names = {"id": model_id, "modelId": model_id, "sha": commit.id, "tags": [], "disabled": False}
            self._answer(200, names | {"private": model_id in self._hub.private, "gated": gate, "siblings": described})

    # Files

    def _resolve(self, path: str) -> None:
        model_id, action, rest = _split(path.strip("/"), "resolve")
        if action is None:
            raise _Refusal(404, message="not a page of this stand-in")
        revision, _, name = (unquote(part) for part in rest.partition("/"))
        commit = self._find(model_id, revision)
        commit_header = {"X-Repo-Commit": commit.id}
        file = commit.files.get(name)
        if file is None:
            raise _Refusal(404, "EntryNotFound", "Entry not found", **commit_header)
        if model_id in self._hub.gated and not self._has_access():
            status = 403 if self._token else 401
            raise _Refusal(status, "GatedRepo", f"Access to model {model_id} is restricted", **commit_header)
        if not file.is_lfs:
            self._send_file(f"{model_id}/{name}", file, commit_header)
            return
        headers = {
            **commit_header,
            "X-Linked-Size": str(len(file.content)),
            "X-Linked-ETag": f'"{file.sha256}"',
            "Location": f"{self._hub.cdn_url}/{file.sha256}/{quote(f'{model_id}/{name}')}?signature=for-a-while",
        }
        if self._hub.is_xet:
            route = f"{self._hub.url}/api/models/{model_id}/xet-read-token/{commit.id}"
            headers |= {"X-Xet-Hash": file.sha256, "X-Xet-Refresh-Route": route}
        self._answer(302, headers=headers)

    def _send_content(self, path: str) -> None:
        """Sends a file from the second address. Like the real hub's second address, it rejects tokens."""
        if self._token:
            raise _Refusal(400, message="Only one auth mechanism allowed")
        sha256, _, key = unquote(path).strip("/").partition("/")
        file = self._hub.find_content(sha256)
        if file is None:
            raise _Refusal(403, message="AccessDenied")
        self._send_file(key, file, {})

    def _send_file(self, key: str, file: HubFile, headers: dict[str, str]) -> None:
        size = len(file.content)
        first, _, last = (self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last) + 1, size) if last else size
        if begin >= end and size:
            raise _Refusal(416, **{"Content-Range": f"bytes */{size}"})
        fault = self._hub.faults.take("GET", key, end - begin) if self.command == "GET" else None
        if fault and fault.kind == "short":
            end = min(end, begin + fault.after)
        is_part = end - begin < size and self.headers["Range"] is not None
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", "Content-Length": str(end - begin)}
        if is_part:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        self._begin_answer(206 if is_part else 200, headers | self._hub.sends)
        if self.command == "GET":
            try:
                if self._hub.body is not None:
                    self.wfile.write(self._hub.body)
                    self.close_connection = True
                    return
                self._send_body(key, memoryview(file.content)[begin:end], fault)
            except OSError:  # the client has closed the connection
                self.close_connection = True

    def _send_body(self, key: str, content: memoryview, fault: Fault | None) -> None:
        if fault is None or fault.kind == "short":
            self._send_part(key, content)
            return
        self._send_part(key, content[: fault.after])
        while fault.kind == "stall" and not self._hub.closing.is_set():
            readable, _, _ = select.select([self.request], [], [], 0.1)
            if readable and not self.request.recv(1 << 16):
                break
        if fault.kind == "reset":
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def _send_part(self, key: str, part: memoryview) -> None:
        while part:
            num_sent = self.request.send(part[: self._hub.link.take(len(part))])
            with self._hub.lock:
                self._hub.sent[key] += num_sent
            part = part[num_sent:]

    # Who may see what

    def _find(self, model_id: str, revision: str) -> HubCommit:
        hub = self._hub
        if new := hub.renamed.get(model_id):
            raise _Refusal(307, Location=self.path.replace(model_id, new, 1))
        if self._token and hub.token and not self._has_access():
            raise _Refusal(401, message="Invalid credentials in Authorization header")
        if model_id not in hub.revisions or (model_id in hub.private and not self._has_access()):
            raise _Refusal(404 if self._token else 401, "RepoNotFound", "Repository not found")
        if (commit := hub.find(model_id, revision)) is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _has_access(self) -> bool:
        return self._hub.token is not None and self._token == f"Bearer {self._hub.token}"

    # Answers

    def _answer(self, status: int, body: Any = b"", headers: Mapping[str, str] | None = None) -> None:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = {} if isinstance(body, bytes) else {"Content-Type": "application/json"}
        length = {"Content-Length": str(len(payload))}
        self._begin_answer(status, {**length, **kind, **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(payload)

    def _begin_answer(self, status: int, headers: Mapping[str, str]) -> None:
        self._seen.status = status
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()


def _split(path: str, *actions: str) -> tuple[str, str | None, str]:
    """Splits `org/model/tree/main/a` into repository, action and the rest, all still quoted."""
    parts = path.split("/")
    for index, part in enumerate(parts[:3]):
        if index and part in actions:
            return "/".join(parts[:index]), part, "/".join(parts[index + 1 :])
    return path, None, ""
