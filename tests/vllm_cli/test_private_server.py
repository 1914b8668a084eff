"""The flags of the server that `run-batch` starts, and its socket."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.registry import env
from tests.startup.vllm.fake_start import short_folder
from vllm_cli.batch.run import default_flags
from vllm_cli.private_server import _remove_stale_sockets


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder with a path short enough for a Unix socket in it."""
    with short_folder() as folder:
        yield folder


@pytest.mark.parametrize(
    ("words", "variable", "is_quiet"),
    [
        (("--model", "m"), None, True),
        (("--engine", "embedded"), "vllm", True),
        ((), "vllm", False),
        (("--engine=vllm",), None, False),
        (("--engine", "auto"), None, False),
    ],
)
def test_flags_of_the_embedded_engine_are_not_passed_to_another_engine(words, variable, is_quiet):
    with env.VCLI_ENGINE.override(variable):
        flags = default_flags(words)
    assert bool(flags) == is_quiet
    assert ("embedded" in flags) == is_quiet


def test_sockets_of_killed_processes_are_removed_and_no_others(short_path):
    stale, alive, starting = (short_path / f"vllm-cli-server-{name}" for name in ("stale", "alive", "starting"))
    for folder in (stale, alive, starting):
        folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale / "server.sock"))
        dead.close()
        listener.bind(str(alive / "server.sock"))
        listener.listen()
        _remove_stale_sockets(short_path)
    assert sorted(short_path.iterdir()) == [alive, starting]
