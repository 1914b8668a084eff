"""A server under a service manager: systemd's socket activation, notifications and watchdog."""

import os
import signal
import socket
import subprocess
import sys

from tests.startup.port.systemd.notify_socket import NotifySocket
from tests.startup.vllm.fake_start import short_folder
from tests.support.http_client import ask
from tests.support.waiting import wait_until

_EXEC = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "vllm_cli", "serve", *sys.argv[2:]])
"""


def test_a_service_takes_its_socket_and_notifies_its_state(tiny_llama, tmp_path, cold_or_warm):
    environment = cold_or_warm | {"WATCHDOG_USEC": "200000", "LISTEN_FDS": "1"}
    with (
        short_folder() as folder,
        NotifySocket(str(folder / "notify")) as notified,
        socket.create_server(("127.0.0.1", 0)) as listener,
        (tmp_path / "log").open("w") as log,
    ):
        process = subprocess.Popen(
            _service(listener.fileno(), str(tiny_llama), "--port", "1", "--max-model-len", "256"),
            env=os.environ | environment | {"NOTIFY_SOCKET": notified.address},
            pass_fds=[listener.fileno()],
            stderr=log,
        )
        try:
            wait_until(lambda: "READY=1" in notified.lines or process.poll() is not None, timeout_s=240)
            assert process.poll() is None, (tmp_path / "log").read_text()
            statuses = [line for line in notified.lines if line.startswith("STATUS=")]
            assert "STATUS=preflight" in statuses
            url = "http://{}:{}".format(*listener.getsockname())
            assert statuses[-1] == f"STATUS=ready: {url}"
            assert ask(f"{url}/health").status == 200
            wait_until(lambda: notified.lines.count("WATCHDOG=1") >= 3)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
        finally:
            process.kill()
            process.wait()
        wait_until(lambda: "STOPPING=1" in notified.lines)  # it was sent, but may not be read yet
        assert notified.senders == {process.pid}
        assert notified.lines.index("READY=1") < notified.lines.index("STOPPING=1")


def test_a_router_keeps_the_socket_of_its_service(tiny_llama):
    """The model's server never has the variables of the service manager. The socket outlives this server."""
    words = ("--port", "1", "--max-model-len", "256", "--idle-stop", "1s", "--standby", "off")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            _service(listener.fileno(), str(tiny_llama), *words),
            env=os.environ | {"LISTEN_FDS": "1"},
            pass_fds=[listener.fileno()],
        )
        url = "http://{}:{}".format(*listener.getsockname())
    try:
        wait_until(lambda: ask(f"{url}/health").headers.get("model-state") == "stopped", timeout_s=240)
        assert ask(f"{url}/v1/completions", {"prompt": "a", "max_tokens": 2}).status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()


def _service(fd: int, *words: str) -> list[str]:
    """The words of a `vllm-cli serve` that systemd executes with the socket as file descriptor 3."""
    return [sys.executable, "-c", _EXEC, str(fd), *words]
