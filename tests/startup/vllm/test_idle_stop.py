"""`--engine vllm --idle-stop` with the fake vLLM: vLLM ends when idle, and the next request starts it."""

import psutil
import pytest

from tests.startup.vllm.fake_start import CHECKED, FakeStart, environment
from tests.support.http_client import ask
from tests.support.waiting import is_gone, wait_until

pytestmark = pytest.mark.thorough


def _wait_stopped(start: FakeStart) -> None:
    def is_stopped() -> bool:
        """Whether the model is stopped. Its probes and reports do not keep the model running."""
        answers = [ask(f"http://127.0.0.1:{start.port}{path}") for path in ("/livez", "/metrics", "/health")]
        return answers[-1].headers.get("model-state") == "stopped"

    wait_until(is_stopped)


def test_vllm_ends_without_requests_and_the_next_one_starts_it_with_the_router_s_standby(folder, model):
    runtime = folder / "runtime"
    runtime.mkdir(mode=0o700)
    env = environment(folder, XDG_RUNTIME_DIR=str(runtime), **CHECKED)
    with FakeStart(folder, model, "--idle-stop", "1s", env=env) as start:
        start.wait_ready()
        start.wait(lambda: list(folder.glob("vcli-*/standby-*/*-vllm-compiled.sock")))
        _wait_stopped(start)
        wait_until(lambda: not start.children_with("--uds"))
        assert start.ask("/readyz?model")[0] == 503
        assert start.complete("one") == start.complete("one")
        start.wait(lambda: start.complete("one") and start.ask("/readyz?model")[0] == 200)  # stopped again if slow
        while "warm start: forked from the standby's process" not in start.log:
            _wait_stopped(start)  # on a busy machine, a template can take longer than 40 ms to answer
            start.complete("one")
        standbys = start.children_with("standby")
        assert len(standbys) == 1
        assert start.terminate() == 0
    assert not list(folder.glob("vcli-*"))
    assert not [each for each in standbys if psutil.pid_exists(each.pid) and not is_gone(each.pid)]
