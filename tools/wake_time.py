"""Times a request for a stopped model to its first token (`vllm-cli serve --idle-stop`).

    .venv/bin/python -m tools.wake_time .peers/model --engine embedded
    .venv/bin/python -m tools.wake_time .peers/model --engine vllm --idle-warm off --rounds 5

All words after the model are those of `vllm-cli serve`, but for --rounds (10).
"""

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from contextlib import suppress

import psutil

from startup.standby.status import STATUS, NoStandbyError, ask
from vllm_cli.client.server_processes import command_words

_POLL_S = 0.02
_TIMEOUT_S = 600.0


def main(words: list[str]) -> None:
    """Prints each time and the median, in seconds."""
    num_rounds = 10
    if "--rounds" in words:
        at = words.index("--rounds")
        num_rounds = int(words[at + 1])
        del words[at : at + 2]
    with socket.create_server(("127.0.0.1", 0)) as free:  # tests.ports needs pytest, which vLLM's environment lacks
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm_cli", "serve", *words, "--port", str(port), "--idle-stop", "1s"]
    with subprocess.Popen(command) as server:
        try:
            has_standby = "off" not in words
            times = [_round(server.pid, port, has_standby=has_standby) for _ in range(num_rounds)]
        finally:
            server.terminate()
    print(" ".join(f"{took_s:.3f}" for took_s in times))
    print(f"median {statistics.median(times):.3f} s of {num_rounds}")


def _round(pid: int, port: int, *, has_standby: bool) -> float:
    """One request once the model is stopped and the imports of the standby are done."""
    deadline_s = time.monotonic() + _TIMEOUT_S
    while _state(port) != "stopped" or (has_standby and not _is_standby_ready(pid)):
        assert time.monotonic() < deadline_s, "the model was not stopped in time"
        time.sleep(_POLL_S)
    time.sleep(1.0)
    begin_s = time.perf_counter()
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 8, "stream": True})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    while not response.readline().startswith(b"data:"):
        pass
    took_s = time.perf_counter() - begin_s
    response.read()
    connection.close()
    return took_s


def _state(port: int) -> str | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/health")
        return connection.getresponse().headers.get("Model-State")
    return None


def _is_standby_ready(pid: int) -> bool:
    for child in psutil.Process(pid).children():
        if command_words(child, "standby") is not None:
            os.environ["VCLI_STANDBY_FOLDER"] = child.environ()["VCLI_STANDBY_FOLDER"]
            with suppress(NoStandbyError):
                return ask(STATUS).is_settled
    return False


if __name__ == "__main__":
    main(sys.argv[1:])
