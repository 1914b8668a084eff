"""The watchdog reports a silent engine, and ends it after the time-out. The clock is a fake."""

import logging
import time
from types import SimpleNamespace

import pytest

from base.server_settings import waiting_mark
from envs.registry import env
from server.operation import engine_watchdog
from server.operation.engine_watchdog import EngineWatchdog


class FakeProcesses:
    """Implements `server.operation.engine_watchdog.EngineProcesses`."""

    def __init__(self) -> None:
        self.names_of_stopped: list[str] = []
        self.processor_s = 0.0
        self.num_stacks = 0
        self.reasons: list[str] = []
        """The reasons with which the processes were ended."""

    def stopped(self) -> list[str]:
        return self.names_of_stopped

    def computed_s(self, *, is_on_processor: bool) -> float:
        return self.processor_s if is_on_processor else 0.0

    async def read_stacks(self) -> str:
        self.num_stacks += 1
        return "the stacks"

    async def end(self, reason: str) -> None:
        self.reasons.append(reason)


class _EndOfTimeError(BaseException):
    """Ends the simulated time. It is no error of the watchdog."""


class Watched:
    """A watchdog whose time passes only in `asyncio.sleep`. Its engine answers until `silent_from_s`."""

    is_on_processor = True

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, timeout_s: float = 300.0, is_first: bool = True) -> None:
        self.now_s = 0.0
        self.silent_from_s = 0.0
        self.silent_until_s = 1e9
        self.at = []
        """Moments, and the functions that are called then."""
        self.num_running = 0
        self.processes = FakeProcesses()
        self.hung_s: float | None = None
        self.watchdog = EngineWatchdog(self, self.processes, self, timeout_s=timeout_s, is_first=is_first)
        # The watchdog's own names: servers of other tests run in threads of this process.
        clock = SimpleNamespace(monotonic=lambda: self.now_s, strftime=time.strftime)
        monkeypatch.setattr(engine_watchdog, "asyncio", SimpleNamespace(sleep=self._sleep))
        monkeypatch.setattr(engine_watchdog, "time", clock)

    async def _sleep(self, seconds: float) -> None:
        self.now_s += seconds
        while self.at and self.at[0][0] <= self.now_s:
            self.at.pop(0)[1]()

    def has_answered(self) -> bool:
        return not self.silent_from_s <= self.now_s < self.silent_until_s

    def engine_hangs(self, reason: str) -> None:
        self.hung_s = self.now_s

    async def run_until(self, end_s: float) -> None:
        def end() -> None:
            raise _EndOfTimeError

        self.at.append((end_s, end))
        with pytest.raises(_EndOfTimeError):
            await self.watchdog.run()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


@pytest.mark.parametrize("timeout_s", [0.5, 10, 60, 300])
async def test_a_silent_engine_is_ended_after_the_timeout(monkeypatch, timeout_s):
    one = Watched(monkeypatch, timeout_s=timeout_s)
    await one.watchdog.run()
    [reason] = one.processes.reasons
    assert reason.startswith(f"it was silent for {timeout_s:g} s (--engine-watchdog-timeout): since ")
    assert timeout_s <= one.hung_s < timeout_s * 1.11


async def test_an_engine_without_a_timeout_is_not_watched(monkeypatch):
    one = Watched(monkeypatch, timeout_s=0)
    await one.watchdog.run()
    assert (one.now_s, one.processes.reasons) == (0, [])


@pytest.mark.parametrize(
    ("wants_s", "computes", "hung_s"),
    [(0.0, False, 45.0), (100.0, False, 100.0), (0.0, True, 300.0)],
    ids=["waits", "waits later", "long step"],
)
async def test_an_engine_that_computes_nothing_is_ended_sooner_while_others_wait(
    monkeypatch, tmp_path, wants_s, computes, hung_s
):
    monkeypatch.setenv(env.VCLI_ROUTER.name, str(tmp_path / "1.sock"))
    one = Watched(monkeypatch)
    one.at = [(wants_s, waiting_mark(str(tmp_path / "1.sock")).touch)]
    if computes:
        one.at += [(10.0, lambda: setattr(one.processes, "processor_s", 250.0))]
    await one.watchdog.run()
    assert one.hung_s == pytest.approx(hung_s, abs=1)
    why = "(--engine-watchdog-timeout)" if computes else "while others wait for its memory"
    assert one.processes.reasons[0].startswith(f"it was silent for {hung_s:.0f} s {why}: since ")


@pytest.mark.parametrize(
    ("computed_s", "is_on_processor", "stopped", "level", "text"),
    [
        pytest.param(0.0, True, [], "WARNING", "silent for 30 s, with 0 s of processor time: since ", id="silent"),
        pytest.param(25.0, True, [], "INFO", "in one step for 30 s, with 25 s of processor time", id="a long step"),
        pytest.param(25.0, False, [], "WARNING", "silent for 30 s", id="no sign of work on a GPU"),
        pytest.param(25.0, True, ["A (pid 3)"], "WARNING", "silent for 30 s", id="nor of a stopped process"),
    ],
)
async def test_silence_is_reported_once_as_a_long_step_or_with_the_stacks(
    monkeypatch, log, computed_s, is_on_processor, stopped, level, text
):
    one = Watched(monkeypatch)
    one.is_on_processor, one.processes.names_of_stopped, one.processes.processor_s = is_on_processor, stopped, 1.0
    one.at = [(10.0, lambda: setattr(one.processes, "processor_s", 1.0 + computed_s))]
    await one.run_until(299)
    [line] = log.records
    assert line.levelname == level
    assert text in line.getMessage()
    assert "0 requests run" in line.getMessage()
    assert "; it is ended after 300 s" in line.getMessage()
    assert line.getMessage().endswith("\nthe stacks") == one.processes.num_stacks == (level == "WARNING")


async def test_an_engine_that_answers_while_a_process_is_stopped_is_silent(monkeypatch):
    one = Watched(monkeypatch, timeout_s=60)
    one.silent_from_s = 1e9
    one.processes.names_of_stopped = ["Worker (pid 3)"]
    await one.watchdog.run()
    assert "0 requests run; stopped by a signal: Worker (pid 3)" in one.processes.reasons[0]


async def test_an_answer_ends_the_silence(monkeypatch, log):
    one = Watched(monkeypatch, timeout_s=60)
    one.silent_until_s = 45
    await one.run_until(600)
    assert [line.getMessage() for line in log.records[1:]] == ["the engine answers again, after 44 s"]
    assert one.watchdog.silence_s == 0


async def test_answers_between_long_steps_are_not_reported(monkeypatch, log):
    one = Watched(monkeypatch, timeout_s=40)
    monkeypatch.setattr(one, "has_answered", lambda: one.now_s % 29 == 0)
    await one.run_until(2900)
    assert log.records == []


async def test_the_time_in_which_this_process_did_not_run_does_not_count(monkeypatch):
    one = Watched(monkeypatch, timeout_s=60)
    one.at = [(5.0, lambda: setattr(one, "now_s", one.now_s + 1000))]
    await one.watchdog.run()
    assert one.hung_s == pytest.approx(1060, abs=1)


async def test_only_the_first_of_several_api_servers_tells_and_ends(monkeypatch, log):
    one = Watched(monkeypatch, timeout_s=60, is_first=False)
    await one.watchdog.run()
    assert (one.hung_s, one.processes.reasons, log.records) == (60, [], [])
