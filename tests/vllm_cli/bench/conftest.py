"""Fixtures of the benchmarks' tests: a real HTTP server with known delays, in a separate process."""

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.http_client import ask
from tests.support.ports import free_port
from tests.support.waiting import wait_until

FAKE_SERVER = (sys.executable, "-I", "-S", str(Path(__file__).parent / "fake_server.py"))


class RunningServer(NamedTuple):
    """A fake server that accepts connections."""

    url: str
    process: subprocess.Popen[bytes]

    @property
    def seen(self) -> Any:
        """The received bodies and the maximum number of concurrent requests."""
        return ask(self.url + "/seen").json


@pytest.fixture
def fake_command() -> Callable[..., str]:
    """A function that returns shell words to run a fake server, without the port."""
    return lambda *flags: shlex.join([*FAKE_SERVER, *map(str, flags)])


@pytest.fixture
def fake_server() -> Iterator[Callable[..., RunningServer]]:
    """A function that starts fake servers with these flags."""
    servers: list[RunningServer] = []

    def start(*flags: object) -> RunningServer:
        port = free_port()
        words = [*FAKE_SERVER, "--port", str(port), *map(str, flags)]
        servers.append(RunningServer(f"http://127.0.0.1:{port}", subprocess.Popen(words, stdout=subprocess.DEVNULL)))
        wait_until(lambda: ask(f"{servers[-1].url}/health").status)
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()
