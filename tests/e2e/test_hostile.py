"""Real servers get malicious models and bytes. No code runs, and no request or log line can be forged."""

import re
import shutil
import socket
from contextlib import suppress
from typing import Final

import pytest

from tests.e2e.server_process import ServerProcess
from tests.hostile.checkpoints import pickles, write_code
from tests.support.cli import run_cli
from tests.support.http_client import RawClient
from tests.support.tiers import slow_but_for
from tests.support.waiting import wait_until

_HIDDEN: Final = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
_CHUNKED: Final = b"0\r\n\r\n" + _HIDDEN
SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _post(*headers: bytes, body: bytes = _CHUNKED) -> bytes:
    return b"\r\n".join([b"POST /tokenize HTTP/1.1", b"Host: x", *headers, b"", body])


_LENGTH: Final = b"Content-Length: %d" % len(_CHUNKED)

# Cases are added to these two and never removed.
AMBIGUOUS: Final = {
    "length and chunks": _post(_LENGTH, b"Transfer-Encoding: chunked"),
    "chunks and length": _post(b"Transfer-Encoding: chunked", _LENGTH),
    "two lengths": _post(b"Content-Length: 0", _LENGTH, body=_HIDDEN),
    "a list of lengths": _post(b"Content-Length: 0, 5", body=_HIDDEN),
    "length with a sign": _post(b"Content-Length: +0", body=_HIDDEN),
    "negative length": _post(b"Content-Length: -1", body=_HIDDEN),
    "hexadecimal length": _post(b"Content-Length: 0x5", body=_HIDDEN),
    "length that is no number": _post(b"Content-Length: five", body=_HIDDEN),
    "length beyond 64 bits": _post(b"Content-Length: 18446744073709551616", body=_HIDDEN),
    "space before the colon": _post(b"Transfer-Encoding : chunked", _LENGTH),
    "tab before the colon": _post(b"Content-Length\t: 0", body=_HIDDEN),
    "unknown coding": _post(b"Transfer-Encoding: xchunked"),
    "chunked and then another coding": _post(b"Transfer-Encoding: chunked, identity"),
    "chunked twice": _post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
    "chunked in quotes": _post(b'Transfer-Encoding: "chunked"'),
    "vertical tab before the coding": _post(b"Transfer-Encoding:\x0bchunked"),
    "coding in a folded line": _post(b"Transfer-Encoding:\r\n chunked", _LENGTH),
    "folded header": _post(b"X: a\r\n Content-Length: 0", body=_HIDDEN),
    "bare line feed in a header": _post(b"X: a\nTransfer-Encoding: chunked", _LENGTH),
    "bare carriage return in a header": _post(b"X: a\rTransfer-Encoding: chunked", _LENGTH),
    "zero byte in a header": _post(b"X: a\0b", b"Content-Length: 0", body=_HIDDEN),
    "header without a name": _post(b": x", b"Content-Length: 0", body=_HIDDEN),
    "header without a colon": _post(b"Content-Length 5", body=_HIDDEN),
    "chunk size with a sign": _post(b"Transfer-Encoding: chunked", body=b"+0\r\n\r\n" + _HIDDEN),
    "chunk size in another base": _post(b"Transfer-Encoding: chunked", body=b"0x0\r\n\r\n" + _HIDDEN),
    "chunk size beyond 64 bits": _post(b"Transfer-Encoding: chunked", body=b"10000000000000000\r\n" + _HIDDEN),
    "chunk longer than its size": _post(b"Transfer-Encoding: chunked", body=b"1\r\nabc\r\n" + _CHUNKED),
    "line feed in a chunk extension": _post(b"Transfer-Encoding: chunked", body=b"5;a\nb\r\n0\r\n\r\n" + _HIDDEN),
}
"""Each has a hidden request for /hidden, which some parsers accept. The only valid response is a 400."""

GARBAGE: Final = {
    "nothing": b"\r\n\r\n",
    "zeros": b"\0" * 4096,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 600,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9": b"GET / HTTP/9.9\r\n\r\n",
    "unknown method": b"HACK / HTTP/1.1\r\n\r\n",
    "line break in the method": b"GET\r\n / HTTP/1.1\r\n\r\n",
    "space in the path": b"GET /a b HTTP/1.1\r\n\r\n",
    "no path": b"GET  HTTP/1.1\r\n\r\n",
    "absolute path elsewhere": b"GET http://169.254.169.254/latest/meta-data HTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT": b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "upgrade": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "websocket": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "path of dots": b"GET /v1/models/../../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    "path of encoded dots": b"GET /v1/models/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    "encoded line break in the path": b"GET /a%0d%0aX-Injected:%20yes HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes that are no UTF-8 in the path": b"GET /\xff%ff%fe HTTP/1.1\r\nHost: x\r\n\r\n",
    "terminal escape in the path": b"GET /%1b[2J%1b]0;owned%07 HTTP/1.1\r\nHost: x\r\n\r\n",
}
"""Each of these must be rejected or answered correctly. The server must answer the next request."""


@pytest.mark.parametrize("evil", slow_but_for(["weights", "code"], "code"))
def test_a_model_that_contains_code_fails_the_start(model_path, tmp_path, evil):
    folder, marker = tmp_path / "model", tmp_path / "evil-was-here"
    folder.mkdir()
    for name in SMALL_FILES:
        shutil.copy(model_path / name, folder)
    (folder / "pytorch_model.bin").write_bytes(pickles(marker)["archive"])
    if evil == "code":
        write_code(folder, marker)
    done = run_cli("serve", folder, "--port", "0")
    assert done.returncode == 3, done.stderr
    assert not marker.exists()
    assert "Error:" in done.stderr
    assert "Traceback" not in done.stderr


def exchange(server: ServerProcess, request: bytes) -> bytes:
    """Sends a request. Returns all bytes until the server closes the connection."""
    with RawClient(server.port) as client, suppress(ConnectionError):  # it may close before it has read everything
        client.send(request).socket.shutdown(socket.SHUT_WR)
        return client.read_to_end()
    return b""


@pytest.mark.parametrize("request_bytes", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_a_request_with_ambiguous_length_is_rejected_and_ends_the_connection(server, request_bytes):
    received = exchange(server, request_bytes)
    assert [int(status) for status in _STATUS.findall(received)] in ([400], [])
    assert server.health() == 200


@pytest.mark.parametrize("request_bytes", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_rejected_or_not_found(server, request_bytes):
    received = exchange(server, request_bytes)
    assert all(status in (b"200", b"400", b"404") for status in _STATUS.findall(received)), received
    assert b"root:" not in received
    assert b"x-injected" not in received.lower()
    assert server.health() == 200


def test_paths_cannot_write_lines_or_colours_into_the_log(server):
    exchange(server, b"GET /one%0aERROR%20forged%1b[31m%e2%80%a8two HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    wait_until(lambda: "/one" in server.log)
    [line] = [line for line in server.log.split("\n") if "forged" in line]
    assert "/one%0AERROR%20forged%1B" in line
    assert not _CONTROL.search(server.log)
