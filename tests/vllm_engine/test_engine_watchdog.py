"""If real vLLM's engine hangs, the watchdog reports it with stacks and ends it. A sleeping one does not hang.

`tests/server/operation/test_engine_watchdog.py` has the rules, `tests/startup/reports/crash` what is told of
workers, `tests/gpu_stub/test_gpu_stops.py` steps that are long.
"""

import re
import time
from pathlib import Path
from typing import Final

import pytest

from tests.support.http_client import StreamReader, ask
from tests.support.waiting import is_gone, wait_until

pytestmark = [pytest.mark.alone, pytest.mark.versions]

_TIMEOUT_S: Final = 6.0
_WATCHDOG: Final = ("--engine-watchdog-timeout", f"{_TIMEOUT_S:g}")
_END_S: Final = 30.0
"""Most seconds from the watchdog's time-out to the exit."""
_NUM_TOKENS: Final = 240


def test_a_stopped_engine_ends_the_server_with_its_name(start_vllm):
    with start_vllm("ours", *_WATCHDOG) as server:
        server.wait_ready()
        readers = [StreamReader(server.url, _NUM_TOKENS) for _ in range(4)]
        family = server.family()
        server.titled("EngineCore")[0].suspend()
        wait_until(lambda: ask(f"{server.url}/health").status == 503)
        health = ask(f"{server.url}/health").json
        assert server.process.wait(_END_S) == 1
        wait_until(lambda: all(is_gone(process.pid) for process in family), _END_S)
        for reader in readers:
            *_, last, end = reader.finish()
            assert "The engine hangs: it was silent for" in last["error"]["message"]
            assert end is None
    assert health["status"] == "hung"
    assert "4 requests run; stopped by a signal: EngineCore (pid " in health["error"]["message"]
    log = re.sub(r"^\(APIServer pid=\d+\) ", "", server.log, flags=re.M)  # vLLM 0.29 adds the process
    begin, cause, *_, end = log[log.rindex("\nError: ") + 1 :].splitlines()
    assert re.fullmatch(r"Error: EngineCore \(pid \d+\) failed while it served\.", begin)
    assert "the engine hung: EngineHangError: it was silent for 6 s" in cause
    assert re.search(r"; EngineCore \(pid \d+\) in \w+\(\) of \w+\.py:\d+", cause), cause
    kept = Path(end.removeprefix("Log: ")).read_text()
    assert re.search(r"\(VllmWorker-0 pid=\d+\) +File .* in worker_busy_loop", kept)
    assert re.search(r"\(EngineCore pid=\d+\) +File .* in run_busy_loop", kept)


def test_an_engine_that_sleeps_is_not_ended(start_vllm):
    with start_vllm("ours", *_WATCHDOG, environment={"VLLM_SERVER_DEV_MODE": "1"}) as server:
        server.wait_ready()
        assert server.ask("/sleep?level=1&mode=wait", {}).status == 200
        time.sleep(2 * _TIMEOUT_S)
        assert server.ask("/wake_up", {}).status == 200
        assert server.generate()
        assert server.terminate() == 0
        assert not re.search("(it was|has been) silent", server.log)
