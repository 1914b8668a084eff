"""A real HTTP server with known delays, which a benchmark starts as a process."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FAKE_SERVER = (sys.executable, "-I", "-S", str(Path(__file__).parent / "fake_server.py"))


@pytest.fixture
def fake_command() -> Callable[..., str]:
    """A function that returns shell words to run a fake server, without the port."""
    return lambda *flags: shlex.join([*FAKE_SERVER, *map(str, flags)])
