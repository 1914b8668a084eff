"""A router puts the fake vLLM to sleep and wakes it up through the control socket."""

import os
import shutil
import signal
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from base.server_settings import control_socket, waiting_mark
from envs.registry import env
from tests.startup.vllm.fake_start import FakeStart, environment
from tests.support.control_socket import tell, tell_line
from tests.support.http_client import Answer, RawClient
from tests.support.waiting import wait_until

pytestmark = pytest.mark.thorough

_AWAKE = "one was read by worker 0"
_ASLEEP = f"{_AWAKE} without ['kv_cache', 'weights']"


class _Model(FakeStart):
    """A server that runs like a model of a router."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self.path = folder / "1.sock"
        self.gate, self.failure = folder / "sleep-gate", folder / "sleep-failure"
        variables = {
            env.VCLI_ROUTER.name: str(self.path),
            "FAKE_VLLM_SLEEP_GATE": str(self.gate),
            "FAKE_VLLM_SLEEP_FAILS": str(self.failure),
            **variables,
        }
        self.model = folder / "model"
        if not self.model.exists():
            (folder / "one").mkdir()
            (folder / "one" / "model.safetensors").write_text("one")
            self.model.symlink_to("one")
        arguments = (str(self.model), "--enforce-eager", "--enable-sleep-mode", "--uds", str(self.path), *arguments)
        super().__init__(folder, *arguments, host=None, env=environment(folder, **variables))

    def ask(self, path: str, body: object = None, **_: object) -> Answer:
        try:
            with RawClient(str(self.path)) as client:
                return (client.get(path) if body is None else client.post(path, body)).read()
        except OSError:
            return Answer(0, b"", {})

    @property
    def control(self) -> Path:
        return control_socket(str(self.path))


@contextmanager
def _served(folder: Path, *arguments: str, **variables: str) -> Iterator[_Model]:
    with _Model(folder, *arguments, **variables) as model:
        model.wait_ready()
        yield model


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("arguments", [(), ("--tensor-parallel-size", "2")], ids=["one", "tp"])
def test_an_engine_sleeps_and_wakes_up_as_it_was(folder, level, arguments):
    with _served(folder, *arguments) as model:
        assert stat.S_IMODE(model.control.stat().st_mode) == 0o600
        assert model.complete("one") == _AWAKE
        for _ in range(2):
            for _ in range(2):  # asleep already
                answer = tell(model.path, do="sleep", level=level)
                assert answer.keys() == {"ok", "took_s"}
                assert answer["ok"]
            assert model.complete("one") == _ASLEEP
            assert model.health() == 200
            for _ in range(2):
                assert tell(model.path, do="wake")["ok"]
            assert model.complete("one") == _AWAKE
        assert model.terminate() == 0
        assert list(folder.glob("1.sock.*")) == []
        assert not model.lines_with("WARNING")


def _flip(model: Path) -> None:
    shutil.copytree(model, model.with_name("two"))
    model.unlink()
    model.symlink_to("two")


@pytest.mark.parametrize("is_asleep", [True, False], ids=["asleep", "awake"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_flip, id="flipped link"),
        pytest.param(lambda model: shutil.rmtree(model.resolve()), id="removed"),
        pytest.param(lambda model: (model / "model.safetensors").write_text("two"), id="written"),
    ],
)
def test_weights_are_not_read_again_from_files_that_have_changed(folder, is_asleep, change):
    """The router then stops the server, and the next request starts it with the new files."""
    with _served(folder) as model:
        if is_asleep:
            assert tell(model.path, do="sleep", level=2)["ok"]
        change(model.model)
        answer = tell(model.path, do="wake") if is_asleep else tell(model.path, do="sleep", level=2)
        assert not answer["ok"]
        assert "have changed since the start" in answer["error"]
        assert model.complete("one") == (_ASLEEP if is_asleep else _AWAKE)
        if not is_asleep:
            assert tell(model.path, do="sleep", level=1)["ok"], "it does not read the files again"
            assert tell(model.path, do="wake")["ok"]


@pytest.mark.parametrize("level", [1, 2])
def test_an_engine_that_cannot_fall_asleep_is_as_it_was(folder, level):
    with _served(folder) as model:
        model.failure.touch()
        answer = tell(model.path, do="sleep", level=level)
        assert answer == {"ok": False, "error": "RuntimeError: CUDA error: out of memory"}
        assert model.complete("one") == _AWAKE
        assert len(model.lines_with("the router's request was not carried out")) == 1
        model.failure.unlink()
        assert tell(model.path, do="sleep", level=level)["ok"]
        assert model.complete("one") == _ASLEEP


def test_a_wake_that_comes_while_the_engine_falls_asleep_turns_it_round(folder):
    with _served(folder) as model, ThreadPoolExecutor(2) as pool:
        model.gate.touch()
        asleep = pool.submit(tell, model.path, do="sleep", level=1)
        busy = Path(f"{model.control}.busy")
        wait_until(busy.exists)
        awake = pool.submit(tell, model.path, do="wake")
        assert model.health() == 200
        model.gate.unlink()
        assert asleep.result()["ok"]
        assert awake.result()["ok"]
        assert not busy.exists()
        assert model.complete("one") == _AWAKE


@pytest.mark.parametrize(
    "line",
    [b"no JSON\n", b"[1]\n", b'{"do": "sleep", "level": 3}\n', b'{"do": "kill"}\n', b"x" * 5000 + b"\n", b"\n"],
    ids=["text", "list", "level", "unknown", "long", "empty"],
)
def test_a_request_that_is_none_is_answered_with_an_error_and_a_client_may_leave(served, line):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(served.control))
    answer = tell_line(served.path, line)
    assert answer.keys() == {"ok", "error"}
    assert not answer["ok"]
    assert tell(served.path, do="wake")["ok"]
    assert served.complete("one") == _AWAKE


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Model]:
    with _served(tmp_path_factory.mktemp("s")) as model:
        yield model


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
@pytest.mark.parametrize("state", ["asleep", "falls-asleep"])
def test_a_server_ends_in_its_sleep(folder, state, number):
    with _served(folder, "--shutdown-timeout", "1") as model, ThreadPoolExecutor(1) as pool:
        if state == "asleep":
            assert tell(model.path, do="sleep", level=1)["ok"]
        else:
            model.gate.touch()
            answer = pool.submit(tell, model.path, do="sleep", level=1)
            wait_until(Path(f"{model.control}.busy").exists)
        assert model.terminate(number) == (0 if number == signal.SIGTERM else -number)
        if state != "asleep":
            assert answer.result() is None or not answer.result()["ok"]
        model.gate.unlink(missing_ok=True)


@pytest.mark.parametrize("num_servers", [1, 2])
def test_the_watchdog_does_not_count_a_long_sleep(folder, num_servers):
    """Also while other models wait for the memory. Of several API servers, the first has the socket."""
    arguments = ("--api-server-count", str(num_servers), "--engine-watchdog-timeout", "1")
    with _served(folder, *arguments) as model, ThreadPoolExecutor(1) as pool:
        waiting_mark(str(model.path)).touch()
        model.gate.touch()
        asleep = pool.submit(tell, model.path, do="sleep", level=1)
        wait_until(Path(f"{model.control}.busy").exists)
        with pytest.raises(TimeoutError):
            asleep.result(4)
        model.gate.unlink()
        assert asleep.result()["ok"]
        assert tell(model.path, do="wake")["ok"]
        assert [model.complete("one") for _ in range(8)] == [_AWAKE] * 8
        assert not model.lines_with("hang", "was silent", "been silent")


@pytest.mark.parametrize("left_out", ["mode", "uds", "router"])
def test_a_server_without_a_part_has_no_socket(folder, left_out):
    variables = {env.VCLI_ROUTER.name: str(folder / "other.sock")} if left_out == "uds" else {}
    with _Model(folder, **variables) as model:
        if left_out == "mode":
            model.command.remove("--enable-sleep-mode")
        if left_out == "router":
            del model.variables[env.VCLI_ROUTER.name]
        model.stop()
        model.path.unlink(missing_ok=True)
        model.start()
        model.wait_ready()
        assert list(folder.glob("*.control")) == []


def test_a_socket_that_a_killed_server_has_left_is_replaced(folder):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(control_socket(str(folder / "1.sock"))))
    Path(f"{control_socket(str(folder / '1.sock'))}.busy").touch()
    with _served(folder) as model:
        assert os.path.lexists(model.control)
        assert tell(model.path, do="sleep", level=2)["ok"]
        assert tell(model.path, do="wake")["ok"]
