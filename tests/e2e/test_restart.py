"""`vllm-cli serve --restart` restarts a failed model behind the same port."""

import json
from pathlib import Path

import psutil
import pytest

from tests.e2e.server_process import ServerProcess
from tests.support.http_client import RawClient, ask
from tests.support.waiting import is_gone, wait_until

_BODY = {"prompt": "a", "max_tokens": 2}


class _Server(ServerProcess):
    """A router that restarts its model."""

    def __init__(self, model: Path, *words: str) -> None:
        super().__init__([str(model), "--engine", "embedded", "--max-model-len", "4096", "--standby", "off", *words])

    def child(self) -> psutil.Process:
        """Waits until the model is ready. Returns the process that the router has started for it."""
        self.wait(lambda: self.ask("/readyz?model").status == 200 and len(self.children_with("--uds")) == 1)
        (child,) = self.children_with("--uds")
        return child

    def complete(self, **fields: object) -> int:  # type: ignore[override]
        return ask(f"{self.url}/v1/completions", {**_BODY, **fields}).status

    def kill(self, process: psutil.Process) -> None:
        """Kills a process. Returns once the router has noticed its end."""
        child = self.child()
        process.kill()
        wait_until(lambda: is_gone(child.pid))


def test_a_stream_gets_an_error_and_the_next_request_waits_for_the_new_engine(tiny_llama):
    with _Server(tiny_llama, "--restart", "on-failure:99", "--max-wait", "600") as server:
        child = server.child()
        (engine,) = [each for each in child.children(recursive=True) if each.ppid() != child.pid]
        with RawClient(server.port) as client:
            client.post("/v1/completions", {"prompt": "a", "max_tokens": 4000, "stream": True, "ignore_eos": True})
            server.wait(lambda: server.metric("vllm:num_requests_running") == 1)
            engine.kill()
            events = client.read().body.decode().strip().split("\n\n")
        assert "error" in json.loads(events[-2].removeprefix("data: "))
        assert server.complete() == 200
        assert server.metric("vllm_cli:model_starts_total") == 2
        assert ask(f"{server.url}/health").status == 200


def test_so_many_failures_in_a_row_end_the_server_with_exit_code_1(tiny_llama):
    with _Server(tiny_llama, "--restart", "on-failure:2") as server:
        for _ in range(2):
            server.kill(server.child())
        assert server.process.wait(60) == 1
        assert "not started again after 2 failures in a row (--restart)" in server.log


@pytest.mark.parametrize("flag", [("--restart", "on-failure:99"), ("--idle-stop", "1h")], ids=" ".join)
def test_a_signal_while_the_model_has_failed_is_no_success(flag, tiny_llama):
    with _Server(tiny_llama, *flag) as server:
        for _ in range(2 if "--restart" in flag else 1):  # only the second failure has a pause before the restart
            server.kill(server.child())
        server.wait(lambda: ask(f"{server.url}/status.json").json["status"] == "failed")
        assert server.terminate() == 1
