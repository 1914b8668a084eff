"""If engine or workers of real vLLM hang, the watchdog reports them with stacks and ends them.

`tests/server/operation/test_engine_watchdog.py` has the rules, `tests/startup/reports/crash` what is told of
workers, `tests/gpu_stub/test_gpu_stops.py` steps that are long.
"""

import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.support.http_client import ask
from tests.support.openai_client import StreamReader
from tests.support.waiting import is_gone, wait_until
from tests.vllm_engine.vllm_server import VllmServer

pytestmark = pytest.mark.alone

_TIMEOUT_S: Final = 6.0
_END_S: Final = 30.0
"""Most seconds from the watchdog's time-out to the exit."""
_ALL_TOKENS: Final = 240
_SILENT: Final = "it was silent for"


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
def test_a_stopped_engine_ends_the_server_with_its_name(start_vllm):
    with start_vllm("ours", *_watchdog(_TIMEOUT_S)) as server:
        server.wait_ready()
        readers = [StreamReader(server.url, _ALL_TOKENS) for _ in range(4)]
        family = server.family()
        _stop(server, "EngineCore")
        wait_until(lambda: ask(f"{server.url}/health").status == 503)
        health = ask(f"{server.url}/health").json
        assert server.process.wait(_END_S) == 1
        wait_until(lambda: all(is_gone(process.pid) for process in family), _END_S)
        _assert_told(readers)
        digest = _digest(server)
    assert health["status"] == "hung"
    assert "4 requests run; stopped by a signal: EngineCore (pid " in health["error"]["message"]
    assert re.fullmatch(r"Error: EngineCore \(pid \d+\) failed while it served\.", digest[0])
    assert f"the engine hung: EngineHangError: {_SILENT} 6 s" in digest[1]
    assert re.search(r"; EngineCore \(pid \d+\) in \w+\(\) of \w+\.py:\d+", digest[1]), digest[1]
    kept = Path(digest[-1].removeprefix("Log: ")).read_text()
    assert re.search(r"\(VllmWorker-0 pid=\d+\) +File .* in worker_busy_loop", kept)
    assert re.search(r"\(EngineCore pid=\d+\) +File .* in run_busy_loop", kept)


def _pause_api_process(server: VllmServer) -> None:
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(2 * _TIMEOUT_S)
    server.process.send_signal(signal.SIGCONT)


def _pause_engine(server: VllmServer) -> None:
    stopped = _stop(server, "EngineCore", "Worker")
    time.sleep(_TIMEOUT_S - 2)
    for process in stopped:
        process.resume()


def _sleep(server: VllmServer) -> None:
    assert server.ask("/sleep?level=1&mode=wait", {}).status == 200
    time.sleep(2 * _TIMEOUT_S)
    assert server.ask("/wake_up", {}).status == 200


@pytest.mark.versions
@pytest.mark.parametrize("pause", [_pause_api_process, _pause_engine, _sleep])
def test_what_is_slow_is_not_ended(start_vllm, pause):
    with start_vllm("ours", *_watchdog(_TIMEOUT_S), environment={"VLLM_SERVER_DEV_MODE": "1"}) as server:
        server.wait_ready()
        with _streams(server, 4) as readers:
            pause(server)
            _assert_whole(readers)
        server.generate()
        assert server.terminate() == 0
        assert not re.search("(it was|has been) silent", server.log)
