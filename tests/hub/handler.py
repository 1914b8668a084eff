"""The answers of the stand-in for the hub: listings, files and refusals."""

import json
import select
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.hub.faults import Fault
from tests.hub.repository import HubCommit, HubFile
from tests.support.http_server import QuietHandler

if TYPE_CHECKING:
    from tests.hub.server import HubListener

_SEND_BUFFER_BYTES: Final = 256 << 10
"""Small, so that what was sent to a client that is killed is hardly more than what it received."""
_FAR_FUTURE_S: Final = 1 << 40


@dataclass
class SeenRequest:
    """One request, and the status of its answer."""

    host: Literal["hub", "cdn"]
    method: str
    path: str
    """As it was sent, without the query."""
    range: str | None
    token: str | None
    """The whole `Authorization` header."""
    status: int | None = None
    """None until it is answered."""

    @property
    def downloaded(self) -> str | None:
        """`repository/file` of a request for content."""
        path = unquote(self.path).strip("/")
        if self.host == "cdn":
            return path.partition("/")[2]
        model_id, action, rest = _split(path, ("resolve",))
        return f"{model_id}/{rest.partition('/')[2]}" if action else None


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, **headers}


class HubHandler(QuietHandler):
    """Requests to both addresses."""

    server: "HubListener"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        super().setup()

    def do_HEAD(self) -> None:
        self._answer_request()

    def do_GET(self) -> None:
        self._answer_request()

    def _answer_request(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        self._seen = self._note_request(path)
        hub = self.server.hub
        hub.may_answer.wait()
        try:
            if fault := hub.faults.take_status(self.command, path.strip("/")):
                after = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                raise _Refusal(fault.status, fault.code, **after)
            if self.server.role == "cdn":
                self._send_content(path)
            elif path.startswith("/api/models/"):
                self._describe(path.removeprefix("/api/models/"), query)
            else:
                self._resolve(path)
        except _Refusal as refusal:
            self._answer(refusal.status, headers=refusal.headers)

    def _note_request(self, path: str) -> SeenRequest:
        seen = SeenRequest(
            self.server.role, self.command, path, range=self.headers["Range"], token=self.headers["Authorization"]
        )
        self.server.hub.requests.append(seen)
        return seen

    # What the hub tells

    def _describe(self, path: str, query: dict[str, list[str]]) -> None:
        model_id, action, revision = _split(path, ("revision", "tree", "xet-read-token"))
        self._redirect_renamed(model_id)
        self._check_access(model_id)
        commit = self._find(model_id, unquote(revision) or "main")
        if action == "xet-read-token":
            self._send_xet_token()
        elif action == "tree":  # always with all folders
            self._answer_json([self._entry(file) for file in commit.files.values()])
        else:
            has_blobs = "blobs" in query and self.server.hub.lists_contents
            self._answer_json(self._model_info(model_id, commit, has_blobs=has_blobs))

    def _model_info(self, model_id: str, commit: HubCommit, *, has_blobs: bool) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = [{"rfilename": name} for name in commit.files]
        if has_blobs:
            for sibling, file in zip(siblings, commit.files.values(), strict=True):
                sibling |= {"size": file.size, "blobId": file.blob_id}
                if file.is_lfs:
                    sibling["lfs"] = {"sha256": file.sha256, **file.lfs}
        return {
            "id": model_id,
            "modelId": model_id,
            "sha": commit.id,
            "private": model_id in self.server.hub.private,
            "gated": "manual" if model_id in self.server.hub.gated else False,
            "disabled": False,
            "tags": [],
            "siblings": siblings,
        }

    def _entry(self, file: HubFile) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": file.name, "size": file.size, "oid": file.blob_id}
        if file.is_lfs:
            entry["lfs"] = {"oid": file.sha256, **file.lfs}
            if self.server.hub.is_xet:
                entry["xetHash"] = file.sha256
        return entry

    def _send_xet_token(self) -> None:
        if not self.server.hub.is_xet:
            raise _Refusal(404, message="Xet is not enabled")
        headers = {
            "X-Xet-Cas-Url": self.server.hub.xet_url,
            "X-Xet-Access-Token": "xet-token",
            "X-Xet-Token-Expiration": str(_FAR_FUTURE_S),
        }
        self._answer(200, b"{}", headers)

    # Files

    def _resolve(self, path: str) -> None:
        model_id, action, rest = _split(path.strip("/"), ("resolve",))
        if action is None:
            raise _Refusal(404, message="not a page of this stand-in")
        self._redirect_renamed(model_id)
        self._check_access(model_id)
        revision, _, name = (unquote(part) for part in rest.partition("/"))
        commit = self._find(model_id, revision)
        commit_header = {"X-Repo-Commit": commit.id}
        file = commit.files.get(name)
        if file is None:
            raise _Refusal(404, "EntryNotFound", "Entry not found", **commit_header)
        if model_id in self.server.hub.gated and not self._has_access():
            status = 403 if self.headers["Authorization"] else 401
            raise _Refusal(status, "GatedRepo", f"Access to model {model_id} is restricted", **commit_header)
        if not file.is_lfs:
            self._send_file(f"{model_id}/{name}", file, commit_header)
            return
        location = f"{self.server.hub.cdn_url}/{file.sha256}/{quote(f'{model_id}/{name}')}?signature=for-a-while"
        linked = {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.sha256}"', "Location": location}
        self._answer(302, headers=commit_header | linked | self._announce_xet(model_id, commit, file))

    def _announce_xet(self, model_id: str, commit: HubCommit, file: HubFile) -> dict[str, str]:
        if not self.server.hub.is_xet:
            return {}
        route = f"{self.server.hub.url}/api/models/{model_id}/xet-read-token/{commit.id}"
        return {"X-Xet-Hash": file.sha256, "X-Xet-Refresh-Route": route, "Link": f'<{route}>; rel="xet-auth"'}

    def _send_content(self, path: str) -> None:
        """At the second address; like the hub's, it takes a signed address and no token."""
        if self.headers["Authorization"]:
            raise _Refusal(400, message="Only one auth mechanism allowed")
        sha256, _, key = unquote(path).strip("/").partition("/")
        file = self.server.hub.find_content(sha256)
        if file is None:
            raise _Refusal(403, message="AccessDenied")
        self._send_file(key, file, {})

    def _send_file(self, key: str, file: HubFile, headers: dict[str, str]) -> None:
        begin, end = self._read_range(file.size)
        fault = self.server.hub.faults.take_body(key, end - begin) if self.command == "GET" else None
        if fault and fault.kind == "short":
            end = min(end, begin + fault.after)
        is_part = end - begin < file.size and self.headers["Range"] is not None
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", "Content-Length": str(end - begin)}
        if is_part:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{file.size}"
        self._begin_answer(206 if is_part else 200, headers)
        if self.command == "GET":
            try:
                self._send_body(key, file, begin, end, fault)
            except OSError:  # the client has closed the connection
                self.close_connection = True

    def _read_range(self, size: int) -> tuple[int, int]:
        """The first byte, and the one behind the last, of what is requested."""
        first, _, last = (self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last) + 1, size) if last else size
        if begin >= end and size:
            raise _Refusal(416, **{"Content-Range": f"bytes */{size}"})
        return begin, end

    def _send_body(self, key: str, file: HubFile, begin: int, end: int, fault: Fault | None) -> None:
        content = memoryview(file.content)
        if fault is None or fault.kind == "short":
            self._send_part(key, content[begin:end])
            return
        broken_at = begin + fault.after
        self._send_part(key, content[begin:broken_at])
        if fault.kind == "wrong":
            self._send_part(key, memoryview(bytes([content[broken_at] ^ 0xFF])))
            self._send_part(key, content[broken_at + 1 : end])
            return
        if fault.kind == "stall":
            self._wait_for_client()
        self.close_connection = True

    def _send_part(self, key: str, part: memoryview) -> None:
        while part:
            link = self.server.hub.link
            piece = part[: link.piece_bytes]
            link.take(len(piece))
            num_sent = self.request.send(piece)
            self._count(key, num_sent)
            part = part[num_sent:]

    def _count(self, key: str, num_bytes: int) -> None:
        with _COUNT_LOCK:
            self.server.hub.sent[key] += num_bytes

    def _wait_for_client(self) -> None:
        """Until the client closes the connection."""
        while not self.server.hub.closing.is_set():
            readable, _, _ = select.select([self.request], [], [], 0.1)
            if readable and not self.request.recv(1 << 16):
                return

    # Who may see what

    def _redirect_renamed(self, model_id: str) -> None:
        if new := self.server.hub.renamed.get(model_id):
            raise _Refusal(307, Location=self.path.replace(model_id, new, 1))

    def _check_access(self, model_id: str) -> None:
        hub, token = self.server.hub, self.headers["Authorization"]
        if token and hub.token and not self._has_access():
            raise _Refusal(401, message="Invalid credentials in Authorization header")
        if model_id not in hub.revisions or (model_id in hub.private and not self._has_access()):
            raise _Refusal(404 if token else 401, "RepoNotFound", "Repository not found")

    def _has_access(self) -> bool:
        token = self.server.hub.token
        return token is not None and self.headers["Authorization"] == f"Bearer {token}"

    def _find(self, model_id: str, revision: str) -> HubCommit:
        commit = self.server.hub.find(model_id, revision)
        if commit is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # Answers

    def _answer_json(self, body: Any) -> None:
        self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self._begin_answer(status, {"Content-Length": str(len(body)), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin_answer(self, status: int, headers: Mapping[str, str]) -> None:
        self._seen.status = status
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()


_COUNT_LOCK: Final = threading.Lock()


def _split(path: str, actions: tuple[str, ...]) -> tuple[str, str | None, str]:
    """`org/model/tree/main/a` as repository, action, and the rest, still quoted."""
    parts = path.split("/")
    for index, part in enumerate(parts[:3]):
        if index and part in actions:
            return "/".join(parts[:index]), part, "/".join(parts[index + 1 :])
    return path, None, ""
