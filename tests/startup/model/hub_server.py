"""A fake hub over HTTP: listings, files by commit, ranges; slow or interrupted on demand."""

import json
import time
from urllib.parse import unquote, urlsplit

from tests.http_server import LocalServer, QuietHandler

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights", "tokenizer.json": b"{}"}

_CUT_FROM_BYTES = 1 << 10


class Hub(LocalServer):
    """Serves repositories like the hub: listing, tree, and files by commit."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(_HubHandler)
        self.models: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []
        self.downloads: list[str] = []
        self.tokens: set[str | None] = set()
        self.ranges: list[int] = []
        """Offsets at which downloads resumed."""
        self.cuts = 0
        """How many of the next downloads of large files are interrupted."""
        self.bytes_per_s: float | None = None


class _HubHandler(QuietHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(path)
        self.server.tokens.add(self.headers["Authorization"])
        if path.startswith("/api/models/"):
            self._describe(path.removeprefix("/api/models/"))
        else:
            model, _, rest = path.strip("/").partition("/resolve/")
            self._send_file(model, rest.partition("/")[2])

    def _describe(self, path: str) -> None:
        model, _, revision = path.partition("/revision/")
        model, _, tree = model.partition("/tree/")
        files = self.server.models.get(model)
        if files is None:
            self._refuse(404, "RepoNotFound")
        elif revision not in ("", "main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif tree:
            rows = [{"type": "file", "path": n, "size": len(c), "oid": _oid(n)} for n, c in files.items()]
            self._answer(json.dumps(rows).encode())
        else:
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            self._answer(json.dumps({"id": model, "sha": COMMIT, "siblings": siblings}).encode())

    def _send_file(self, model: str, name: str) -> None:
        if name not in self.server.models.get(model, {}):
            self._refuse(404, "EntryNotFound")
            return
        if model in self.server.gated:
            self._refuse(403, "GatedRepo")
            return
        if self.command == "GET":
            self.server.downloads.append(name)
        headers = {"ETag": f'"{_oid(name)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        data = self.server.models[model][name]
        first = self.headers["Range"]
        if first is None or self.command == "HEAD":
            self._answer(data, **headers)
            return
        begin = int(first.removeprefix("bytes=").partition("-")[0])
        self.server.ranges.append(begin)
        headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self._answer(data[begin:], status=206, **headers)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, data: bytes, *, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._send(data, is_file="ETag" in headers)

    def _send(self, data: bytes, *, is_file: bool) -> None:
        if is_file and self.server.cuts and len(data) >= _CUT_FROM_BYTES:
            self.server.cuts -= 1
            data = data[: len(data) // 2]
            self.close_connection = True
        pace = self.server.bytes_per_s if is_file else None
        step = max(int(pace / 20), 1) if pace else max(len(data), 1)
        for begin in range(0, len(data), step):
            self.wfile.write(data[begin : begin + step])
            if pace:
                time.sleep(step / pace)


def _oid(name: str) -> str:
    return name.encode().hex().ljust(40, "0")[:40]
