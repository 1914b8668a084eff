"""`--engine vllm --idle-stop` with the fake vLLM: it ends without requests, and the next one starts it."""

from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from tests.e2e.clients import RawClient
from tests.http_answer import ask
from tests.startup.vllm.fake_start import FakeStart, environment, short_folder
from tests.waiting import is_gone, wait_until

pytestmark = pytest.mark.thorough

_WORDS = ("--idle-stop", "1s")


@pytest.fixture(scope="module")
def start() -> Iterator[FakeStart]:
    with short_folder() as folder, FakeStart(folder, *_WORDS, "--idle-warm", "off") as start:
        yield start.wait_ready()


def _wait_stopped(start: FakeStart) -> None:
    def is_stopped() -> bool:
        """Probes and reports do not keep it running."""
        answers = [ask(f"http://127.0.0.1:{start.port}{path}") for path in ("/livez", "/metrics", "/health")]
        return answers[-1].headers.get("Model-State") == "stopped"

    wait_until(is_stopped)


def _vllm(start: FakeStart) -> list[psutil.Process]:
    return [each for each in start.root.children() if "--uds" in each.cmdline()]


def test_vllm_ends_without_requests_and_the_next_one_starts_it(start):
    _wait_stopped(start)
    wait_until(lambda: not _vllm(start))
    assert start.ask("/readyz?model")[0] == 503
    assert start.complete("one") == start.complete("one")
    assert start.ask("/readyz?model")[0] == 200
    assert start.ask("/state")[0] == 200


def test_a_kept_connection_outlives_vllm(start):
    with RawClient(start.port) as client:
        for _ in range(2):
            assert client.post("/v1/completions", {"prompt": "one"}).read().status == 200
            _wait_stopped(start)


def test_a_killed_vllm_is_started_by_a_later_request(start):
    start.complete("one")
    (child,) = _vllm(start)
    child.kill()
    wait_until(lambda: is_gone(child.pid))

    def is_answered() -> bool:
        with suppress(OSError):
            return bool(start.complete("one"))
        return False

    wait_until(is_answered)


def test_later_starts_are_warm_with_its_own_standby(folder):
    runtime = folder / "runtime"
    runtime.mkdir(mode=0o700)
    with FakeStart(folder, *_WORDS, env=environment(folder, XDG_RUNTIME_DIR=str(runtime))) as start:
        start.wait_ready()
        start.wait(lambda: list(folder.glob("vllm-cli-standby-*/*-vllm-compiled.sock")))
        _wait_stopped(start)
        start.complete("one")
        start.wait_logged("warm start: forked from the standby's process")
        standbys = [each for each in start.root.children() if "standby" in each.cmdline()]
        assert len(standbys) == 1
        assert start.terminate() == 0
    assert not list(folder.glob("vllm-cli-standby-*"))
    assert not [each for each in standbys if psutil.pid_exists(each.pid) and not is_gone(each.pid)]
