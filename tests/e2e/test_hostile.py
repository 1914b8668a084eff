"""Real servers get malicious models and paths. No code runs, and no log line can be forged.

`tests/contracts` sends requests that HTTP servers read in different ways.
"""

import re
import shutil
import socket
from contextlib import suppress

import pytest

from tests.e2e.server_process import ServerProcess
from tests.hostile.checkpoints import pickles, write_code
from tests.support.cli import run_cli
from tests.support.http_client import RawClient
from tests.support.tiers import slow_but_for
from tests.support.waiting import wait_until

SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


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


def test_paths_cannot_write_lines_or_colours_into_the_log(server):
    exchange(server, b"GET /one%0aERROR%20forged%1b[31m%e2%80%a8two HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    wait_until(lambda: "/one" in server.log)
    [line] = [line for line in server.log.split("\n") if "forged" in line]
    assert "/one%0AERROR%20forged%1B" in line
    assert not _CONTROL.search(server.log)
