"""A router gets its socket from a service manager. `tests/deploy/test_units.py` has a real systemd."""

import os
import signal
import socket
import subprocess
import sys

from tests.support.http_client import ask
from tests.support.waiting import wait_until

_EXEC = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "vllm_cli", "serve", *sys.argv[2:]])
"""


def test_a_router_keeps_the_socket_of_its_service(tiny_llama):
    """The model's server never has the variables of the service manager. The socket outlives this server."""
    words = ("--port", "1", "--max-model-len", "256", "--idle-stop", "1s", "--standby", "off")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            [sys.executable, "-c", _EXEC, str(listener.fileno()), str(tiny_llama), *words],
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
