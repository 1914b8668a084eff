"""`--engine vllm --idle-stop` with the fake vLLM: it ends without requests, and the next one starts it."""

import http.client
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.startup.vllm.fake_start import FakeStart, environment, short_folder
from tests.startup.vllm.test_serving_probes import _ask, _connect, _post
from tests.waiting import is_gone, wait_until

pytestmark = pytest.mark.thorough

_MIDDLEWARE = '''
class Middleware:
    """Its own answer to /health."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        if scope.get("path") != "/health":
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 418, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
'''
_WORDS = ("--idle-stop", "1s")


@pytest.fixture(scope="module")
def start() -> Iterator[FakeStart]:
    with short_folder() as folder, FakeStart(folder, *_WORDS, "--idle-warm", "off") as start:
        yield start.wait_until_ready()


def _wait_stopped(start: FakeStart) -> None:
    wait_until(lambda: _model_state(start) == "stopped")


def _model_state(start: FakeStart) -> str | None:
    connection = http.client.HTTPConnection("127.0.0.1", start.port, timeout=60)
    with suppress(OSError):
        connection.request("GET", "/health")
        return connection.getresponse().headers.get("Model-State")
    return None


def test_vllm_ends_without_requests_and_the_next_one_starts_it(start: FakeStart) -> None:
    _wait_stopped(start)
    wait_until(lambda: not start.launcher.children())
    assert start.get("/livez")[0] == 200
    assert start.get("/readyz?model")[0] == 503
    assert start.complete("one") == start.complete("one")
    assert start.get("/readyz?model")[0] == 200
    assert start.get("/state")[0] == 200


def test_probes_and_other_gets_do_not_keep_it_running(start: FakeStart) -> None:
    start.complete("one")

    def is_stopped() -> bool:
        start.get("/livez")
        if (state := _model_state(start)) is None:
            start.get("/state")
        return state == "stopped"

    wait_until(is_stopped)


def test_a_kept_connection_outlives_vllm(start: FakeStart) -> None:
    with _connect(start) as client:
        for _ in range(3):
            assert _ask(client, _post("one")).startswith(b"HTTP/1.1 200")
            client.recv(1 << 16)
            _wait_stopped(start)


def test_a_killed_vllm_is_started_by_a_later_request(start: FakeStart) -> None:
    start.complete("one")
    (child,) = start.launcher.children()
    child.kill()
    wait_until(lambda: is_gone(child.pid))

    def is_answered() -> bool:
        with suppress(OSError):
            return bool(start.complete("one"))
        return False

    wait_until(is_answered)


@pytest.mark.parametrize("moment", ["ready", "stopped"])
def test_sigterm_ends_front_and_vllm(folder: Path, moment: str) -> None:
    with FakeStart(folder, *_WORDS, "--idle-warm", "off") as start:
        start.wait_until_ready()
        if moment == "stopped":
            _wait_stopped(start)
        else:
            start.complete("one")
        assert start.end() == 0


def test_a_killed_front_leaves_nothing(folder: Path) -> None:
    with FakeStart(folder, "--idle-stop", "10m", "--idle-warm", "off") as start:
        start.wait_until_ready()
        assert start.end(signal.SIGKILL) == -signal.SIGKILL
        start.wait_until_tree_is_gone()


def test_a_middleware_sees_every_probe_of_a_running_vllm(folder: Path) -> None:
    """Without a front, vLLM accepts itself then."""
    (folder / "keys.py").write_text(_MIDDLEWARE)
    env = environment(folder, PYTHONPATH=f"{folder}:{environment(folder)['PYTHONPATH']}")
    with FakeStart(folder, *_WORDS, "--idle-warm", "off", "--middleware", "keys.Middleware", env=env) as start:
        start.wait_until_ready()
        _wait_stopped(start)
        assert start.complete("one")
        assert start.get("/health") == (418, b"")


def test_later_starts_are_warm_with_its_own_standby(folder: Path) -> None:
    runtime = folder / "runtime"
    runtime.mkdir(mode=0o700)
    with FakeStart(folder, *_WORDS, env=environment(folder, XDG_RUNTIME_DIR=str(runtime))) as start:
        start.wait_until_ready()
        wait_until(lambda: list(folder.glob("vllm-cli-standby-*/*-vllm-compiled.sock")))
        _wait_stopped(start)
        start.complete("one")
        start.wait_for_line("warm start: forked from the standby's process")
        standbys = [each for each in start.launcher.children() if "standby" in each.cmdline()]
        assert len(standbys) == 1
    assert not list(folder.glob("vllm-cli-standby-*"))
    assert not [each for each in standbys if psutil.pid_exists(each.pid) and not is_gone(each.pid)]


def test_a_vllm_that_would_own_its_port_is_refused(folder: Path) -> None:
    with FakeStart(folder, *_WORDS, "--numa-bind") as start:
        assert start.process.wait(60) == 3
        assert "--idle-stop: vLLM" in start.text
