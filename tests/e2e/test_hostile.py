"""Real servers get malicious models and paths. No code runs, and no log line can be forged.

`tests/contracts` sends requests that HTTP servers read in different ways.
"""

import re
import socket
from contextlib import suppress

from tests.e2e.server_process import ServerProcess
from tests.support.http_client import RawClient
from tests.support.waiting import wait_until

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def exchange(server: ServerProcess, request: bytes) -> bytes:
    """Sends a request. Returns all bytes until the server closes the connection."""
    with RawClient(server.port) as client, suppress(ConnectionError):  # it may close before it has read everything
        client.send(request).socket.shutdown(socket.SHUT_WR)
        return client.read_to_end()
    return b""


def test_paths_cannot_write_lines_or_colours_into_the_log(server):
    exchange(server, b"GET /one%0aERROR%20forged%1b[31m%e2%80%a8two HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    wait_until(lambda: "/one" in server.log)
    [line] = [line for line in server.log.split("\n") if "forged" in line]
    assert "/one%0AERROR%20forged%1B" in line
    assert not _CONTROL.search(server.log)
