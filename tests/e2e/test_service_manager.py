"""A server under a service manager: systemd's protocol, from the socket that it is handed to the last word."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.startup.systemd.notify_socket import NotifySocket
from tests.startup.vllm.fake_start import short_folder
from tests.waiting import wait_until

pytestmark = pytest.mark.thorough

_EXEC = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "vllm_cli", "serve", *sys.argv[2:]])
"""


def test_a_service_is_handed_its_socket_and_tells_how_it_is(model_path: Path, tmp_path: Path) -> None:
    with (
        short_folder() as folder,
        NotifySocket(str(folder / "notify")) as heard,
        socket.create_server(("127.0.0.1", 0)) as listener,
        (tmp_path / "log").open("w") as log,
    ):
        process = subprocess.Popen(
            _service(listener.fileno(), str(model_path), "--port", "1", "--max-model-len", "256"),
            env=os.environ | {"NOTIFY_SOCKET": heard.address, "WATCHDOG_USEC": "200000", "LISTEN_FDS": "1"},
            pass_fds=[listener.fileno()],
            stderr=log,
        )
        try:
            wait_until(lambda: "READY=1" in heard.lines or process.poll() is not None, timeout_s=240)
            assert process.poll() is None, (tmp_path / "log").read_text()
            statuses = [line for line in heard.lines if line.startswith("STATUS=")]
            assert "STATUS=preflight" in statuses
            url = "http://{}:{}".format(*listener.getsockname())
            assert statuses[-1] == f"STATUS=ready: {url}"
            with urllib.request.urlopen(f"{url}/health", timeout=60) as response:
                assert response.status == 200
            wait_until(lambda: heard.lines.count("WATCHDOG=1") >= 3)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
        finally:
            process.kill()
            process.wait()
        wait_until(lambda: "STOPPING=1" in heard.lines)  # sent, but perhaps not read yet
        assert heard.lines.index("READY=1") < heard.lines.index("STOPPING=1")


def test_a_descriptor_that_does_not_listen_ends_the_start(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        done = subprocess.run(
            _service(file.fileno(), str(tmp_path)),
            env=os.environ | {"LISTEN_FDS": "1"},
            pass_fds=[file.fileno()],
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert done.returncode == 3
    assert "LISTEN_FDS: descriptor 3 is no socket" in done.stderr


def _service(fd: int, *words: str) -> list[str]:
    """`vllm-cli serve` as systemd executes it, with the descriptor as number 3."""
    return [sys.executable, "-c", _EXEC, str(fd), *words]
