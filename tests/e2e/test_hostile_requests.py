"""Malicious bytes sent to a real server: no request smuggling, no forged lines in the log."""

import re
import socket
from contextlib import suppress

import pytest

from tests.e2e.raw_client import RawClient
from tests.e2e.server_process import ServerProcess
from tests.hostile.requests import AMBIGUOUS, GARBAGE
from tests.waiting import wait_until

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def exchange(server: ServerProcess, request: bytes) -> bytes:
    """Everything that the server sends until it closes the connection."""
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
