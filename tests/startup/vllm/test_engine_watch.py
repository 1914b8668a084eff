"""The launcher's watchdog of vLLM's engine. Real processes of the fake vLLM are stopped.

`tests/server/operation/test_engine_watchdog.py` has the watchdog's rules.
"""

from typing import Any

import pytest

from tests.startup.vllm.fake_start import FakeStart, changed_program, environment, rewrite, variant
from tests.support.openai_client import StreamReader
from tests.support.waiting import wait_until

pytestmark = pytest.mark.thorough

_WATCHED = ("--engine-watchdog-timeout", "3")


@pytest.mark.parametrize(
    ("title", "name", "num_servers"),
    [("VLLM::EngineCor", "EngineCore", 2), ("VLLM::Worker_0", "VllmWorker-0", 1)],
    ids=["engine", "worker"],
)
def test_a_stopped_process_ends_vllm_with_its_name(folder, title, name, num_servers):
    words = ("--api-server-count", str(num_servers)) if num_servers > 1 else ()
    longer = "_ANSWERS_S: Final = 5.0"  # a slow machine may send no probe for half a second
    root, env = changed_program(folder, "server/operation", "_ANSWERS_S: Final = 0.5", longer)
    with FakeStart(folder, *_WATCHED, *words, env=env, cwd=root) as start:
        start.wait_ready()
        readers = [StreamReader(start.url, 100_000) for _ in range(4)]
        process = start.named(title)
        process.suspend()
        wait_until(lambda: process.status() == "stopped")
        found = f"stopped by a signal: {name} (pid {process.pid})"
        if num_servers == 1:
            answers: list[Any] = []
            start.wait(lambda: answers.append(start.ask("/health")) or answers[-1].status == 503)
            answer = answers[-1].json
            assert (answer["status"], found in answer["error"]["message"]) == ("hung", True)
        for reader in readers:
            *_, last, end = reader.finish()
            assert last["error"]["message"].startswith("The engine hangs: it was silent for 3 s (--engine-watchdog")
            assert f" requests run; {found}" in last["error"]["message"]
            assert end is None
        assert start.process.wait(60) == 1
        assert f"Error: {name} (pid {process.pid}) failed while it served." in start.log
        assert "Cause: the engine hung: EngineHangError: it was silent for 3 s (--engine-watchdog" in start.log


@pytest.mark.parametrize(
    ("old", "new"),
    [("_call_utility_async", "_call_otherwise"), ("self.client_index", "self.index")],
    ids=["no call", "another client"],
)
def test_a_vllm_that_is_not_as_expected_has_no_watchdog_and_one_line(folder, old, new):
    with FakeStart(folder, *_WATCHED, env=environment(folder, rewrite(variant(folder), old, new))) as start:
        start.wait_ready()
        assert start.complete("A text") == "A text was read by worker 0"
        start.wait(lambda: start.lines_with("engine watchdog", "no watchdog (--engine-watchdog-timeout)"))
        assert len(start.lines_with("engine watchdog", "no watchdog (--engine-watchdog-timeout)")) == 1
        assert start.terminate() == 0
