"""If engine or workers of real vLLM hang, the watchdog reports them with stacks and ends them.

Slow processes continue. A test takes 20 to 100 s on a machine that does nothing else. Rules of the watchdog:
`tests/server/operation/test_engine_watchdog.py`.
"""

import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.support.http_client import ask
from tests.support.openai_client import StreamReader
from tests.support.waiting import is_gone, wait_until
from tests.vllm_engine import hang_plugin
from tests.vllm_engine.plugin import write_entry_point
from tests.vllm_engine.vllm_server import VllmServer

pytestmark = pytest.mark.alone

_TIMEOUT_S: Final = 6.0
_END_S: Final = 30.0
"""Most seconds from the watchdog's time-out to the exit."""
_ALL_TOKENS: Final = 240
_SILENT: Final = "it was silent for"


class _Hangs:
    """Makes a worker hang in its next step."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "how"
        write_entry_point(folder, hang_plugin)
        self.environment = {"PYTHONPATH": str(folder), hang_plugin.VARIABLE: str(self.file)}

    def next_step(self, how: str) -> None:
        self.file.write_text(how)


@pytest.fixture
def hangs(tmp_path: Path) -> _Hangs:
    return _Hangs(tmp_path)


def _watchdog(timeout_s: float) -> tuple[str, str]:
    return ("--engine-watchdog-timeout", f"{timeout_s:g}")


@contextmanager
def _streams(server: VllmServer, number: int) -> Iterator[list[StreamReader]]:
    readers = [StreamReader(server.url, _ALL_TOKENS) for _ in range(number)]
    yield readers
    for reader in readers:
        reader.finish()


def _assert_told(readers: Sequence[StreamReader]) -> None:
    for reader in readers:
        *_, last, end = reader.finish()
        assert f"The engine hangs: {_SILENT}" in last["error"]["message"]
        assert end is None


def _assert_whole(readers: Sequence[StreamReader]) -> None:
    for reader in readers:
        *_, last, end = reader.finish()
        assert last["choices"][0]["finish_reason"] == "length"
        assert end is None


def _log(server: VllmServer) -> str:
    """The log's lines, without the process that vLLM 0.29 adds."""
    return re.sub(r"^\(APIServer pid=\d+\) ", "", server.log, flags=re.M)


def _digest(server: VllmServer) -> list[str]:
    lines = _log(server).splitlines()
    return lines[max(index for index, line in enumerate(lines) if line.startswith("Error: ")) :]


def _stop(server: VllmServer, *titles: str) -> list[psutil.Process]:
    found = [process for title in titles for process in server.titled(title)]
    assert len(found) >= len(titles)
    for process in found:
        process.suspend()
    return found


@pytest.mark.versions
@pytest.mark.parametrize(
    ("titles", "named", "num_streams"),
    [(("EngineCore",), "EngineCore", 4), (("Worker",), "VllmWorker-0", 0)],
    ids=["engine", "worker"],
)
def test_a_stopped_process_ends_the_server_with_its_name(start_vllm, titles, named, num_streams):
    with start_vllm("ours", *_watchdog(_TIMEOUT_S)) as server:
        server.wait_ready()
        readers = [StreamReader(server.url, _ALL_TOKENS) for _ in range(num_streams)]
        family, begin_s = server.family(), time.monotonic()
        _stop(server, *titles)
        wait_until(lambda: ask(f"{server.url}/health").status == 503)
        told_s = time.monotonic() - begin_s
        health = ask(f"{server.url}/health").json
        assert server.process.wait(_END_S) == 1
        wait_until(lambda: all(is_gone(process.pid) for process in family), _END_S)
        _assert_told(readers)
        digest = _digest(server)
    assert told_s > _TIMEOUT_S - 0.6
    assert health["status"] == "hung"
    assert f"{num_streams} requests run; stopped by a signal: {named} (pid " in health["error"]["message"]
    assert re.fullmatch(rf"Error: {named} \(pid \d+\) failed while it served\.", digest[0])
    assert f"the engine hung: EngineHangError: {_SILENT} 6 s" in digest[1]
    assert re.search(rf"; {named} \(pid \d+\) in \w+\(\) of \w+\.py:\d+", digest[1]), digest[1]
    kept = Path(digest[-1].removeprefix("Log: ")).read_text()
    assert re.search(r"\(VllmWorker-0 pid=\d+\) +File .* in worker_busy_loop", kept)
    assert re.search(r"\(EngineCore pid=\d+\) +File .* in run_busy_loop", kept)


def test_a_worker_in_an_endless_loop_of_c_is_named_with_its_place(start_vllm, hangs, two_ranks):
    words = ("--tensor-parallel-size", "2", *_watchdog(4 * _TIMEOUT_S))
    with start_vllm("ours", *words, environment=two_ranks | hangs.environment) as server:
        server.wait_ready()
        with _streams(server, 4) as readers:
            hangs.next_step("loop")
            assert server.process.wait(4 * _TIMEOUT_S + 10) == 1
            _assert_told(readers)
        digest = _digest(server)
    assert re.match(r"Error: (?:VllmWorker-|Worker_TP)\d \(pid \d+\) failed while it served\.", digest[0])
    assert "in match() of __init__.py" in digest[1]


def _pause_api_process(server: VllmServer, _: _Hangs) -> None:
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(2 * _TIMEOUT_S)
    server.process.send_signal(signal.SIGCONT)


def _pause_engine(server: VllmServer, _: _Hangs) -> None:
    stopped = _stop(server, "EngineCore", "Worker")
    time.sleep(_TIMEOUT_S - 2)
    for process in stopped:
        process.resume()


def _long_step(how: str) -> "Callable[[VllmServer, _Hangs], None]":
    def make_a_long_step(server: VllmServer, hangs: _Hangs) -> None:
        hangs.next_step(f"{how} {_TIMEOUT_S - 3}")
        server.generate()

    return make_a_long_step


def _call_workers(server: VllmServer, _: _Hangs) -> None:
    assert server.ask("/collective_rpc", {"method": "nap", "args": [str(2 * _TIMEOUT_S)]}).status == 200


def _off_and_on(off: str, on: str) -> "Callable[[VllmServer, _Hangs], None]":
    def turn_off_and_on(server: VllmServer, _: _Hangs) -> None:
        assert server.ask(off, {}).status == 200
        time.sleep(2 * _TIMEOUT_S)
        assert server.ask(on, {}).status == 200

    return turn_off_and_on


_SLOW: Final = {
    "the API process is paused": _pause_api_process,
    "engine and worker are paused": _pause_engine,
    "a step computes": _long_step("compute"),
    "a step waits": _long_step("sleep"),
    "a call of the workers": _call_workers,
    "the scheduler is paused": _off_and_on("/pause?mode=wait", "/resume"),
    "sleep of level 1": _off_and_on("/sleep?level=1&mode=wait", "/wake_up"),
    "sleep of level 2": _off_and_on("/sleep?level=2&mode=wait", "/wake_up"),
}
"""Ways to be slow. vLLM's CPU worker keeps its memory in sleep. Engine and scheduler sleep as on GPUs."""


@pytest.mark.versions
@pytest.mark.parametrize("slow", _SLOW)
def test_what_is_slow_is_not_ended(start_vllm, hangs, slow):
    environment = hangs.environment | {"VLLM_SERVER_DEV_MODE": "1"}
    with start_vllm("ours", *_watchdog(_TIMEOUT_S), environment=environment) as server:
        server.wait_ready()
        with _streams(server, 4) as readers:
            _SLOW[slow](server, hangs)
            _assert_whole(readers)
        server.generate()
        assert server.terminate() == 0
        assert "silent" not in server.log


def test_a_start_that_compiles_and_its_first_request_are_no_hang(start_vllm, small_model, tmp_path):
    words = ("--max-model-len", "256", "--dtype", "float32", *_watchdog(1))
    with start_vllm("ours", *words, model=small_model, environment={"VLLM_CACHE_ROOT": str(tmp_path)}) as server:
        server.wait_ready()
        server.generate()
        assert server.terminate() == 0
        assert "silent" not in server.log


def test_one_of_several_engines_ends_all_api_servers(start_vllm, two_ranks):
    """Streams of another engine may finish."""
    words = ("--data-parallel-size", "2", *_watchdog(_TIMEOUT_S))  # two API servers, too
    with start_vllm("ours", *words, environment=two_ranks) as server:
        server.wait_ready()
        with _streams(server, 6) as readers:
            family = server.family()
            stopped = server.titled("EngineCore")[-1]
            stopped.suspend()
            assert server.process.wait(_TIMEOUT_S + 10) == 1
            wait_until(lambda: all(is_gone(process.pid) for process in family), _END_S)
            _assert_told([reader for reader in readers if "error" in reader.finish()[-2]])
            assert any("error" in reader.finish()[-2] for reader in readers)
        digest = _digest(server)
    assert re.match(rf"Error: EngineCore\w* \(pid {stopped.pid}\) failed while it served\.", digest[0])
    assert "the engine hung: EngineHangError" in digest[1]
