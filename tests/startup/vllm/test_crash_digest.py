"""A start of vLLM that fails ends with the digest of the crash, in each way in which a process can end."""

import os
import pty
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.startup.vllm.fake_start import ROOT, FakeStart, command, environment, rewrite, run_fake, variant
from tests.support.ports import free_port
from tests.support.terminal import read_terminal
from tests.support.waiting import is_gone, stopped, wait_until

pytestmark = pytest.mark.thorough

_CRASH = "FAKE_VLLM_CRASH"
_FAILED = 3
_KILLED = "SIGKILL, not by the kernel's OOM killer"


def _digest(text: str) -> list[str]:
    """The lines of the digest, which are the last lines."""
    lines = text.splitlines()
    begin = max(index for index, line in enumerate(lines) if line.startswith("Error: "))
    return lines[begin:]


@pytest.mark.parametrize(
    ("crash", "arguments", "process", "cause"),
    [
        ("config:ValueError", (), "APIServer (pid ", "CrashError: ValueError"),
        ("config:SystemExit 1", (), "APIServer (pid ", "exit code 1 and no message"),
        ("engine:cannot start", (), "EngineCore (pid ", "CrashError: cannot start"),
        ("engine:SIGKILL", (), "EngineCore (pid ", _KILLED),
        ("engine:exit 7", (), "EngineCore (pid ", "died unexpectedly with exit code 7"),
        ("worker 1:no weights", ("-tp", "2"), "Worker_1 (pid ", "CrashError: no weights"),
        ("worker 1:SIGKILL", ("-tp", "2"), "VllmWorker-1 (pid ", _KILLED),
        ("worker 0:SIGABRT", ("-tp", "2"), "VllmWorker-0 (pid ", "crashed with SIGABRT"),
    ],
)
def test_a_failed_start_ends_with_the_first_cause(crash, arguments, process, cause, folder):
    env = environment(folder, **{_CRASH: crash})
    done = run_fake(folder, "--host", "127.0.0.1", "--port", str(free_port()), *arguments, env=env)
    assert done.returncode == _FAILED, done.stderr
    first, second, third, code, log = _digest(done.stderr)
    assert process in first
    assert cause in second
    assert third.startswith("Do: ")
    assert code.startswith("Code: VC-")
    assert Path(log.removeprefix("Log: ")).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("arguments", "crash", "cause"),
    [((), "request:SIGKILL", _KILLED), ((), "request:no such key", "no such key"), (("--headless",), "", _KILLED)],
    ids=["killed", "failed", "without an API server"],
)
def test_an_engine_that_dies_later_ends_the_start_with_the_digest(arguments, crash, cause, folder):
    with FakeStart(folder, *arguments, env=environment(folder, **{_CRASH: crash})) as start:
        if arguments:
            start.wait_logged("headless engine")
            start.named("VLLM::EngineCor").kill()
        else:
            start.wait_ready()
            with suppress(OSError):
                start.complete("A text")
        assert start.process.wait(60) == 1
        first, second, *_ = _digest(start.log)
        assert first.startswith("Error: EngineCore (pid ")
        assert arguments or "failed while it served" in first
        assert cause in second


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_engine_has_died_hides_no_failure(number, folder):
    """The server has not noticed the death, because it was stopped. vLLM itself returns 0."""
    with FakeStart(folder) as start:
        start.wait_ready()
        engine = start.named("VLLM::EngineCor")
        with stopped(start.process.pid):
            engine.kill()
            wait_until(lambda: is_gone(engine.pid))
            start.process.send_signal(number)
        assert start.process.wait(60) == 1
        first, second, *_ = _digest(start.log)
        assert first.startswith("Error: EngineCore (pid ")
        assert _KILLED in second


@pytest.mark.parametrize(
    ("crash", "arguments"),
    [("config:no such flag", ()), ("engine:cannot start", ()), ("worker 1:no weights", ("-tp", "2"))],
)
def test_a_terminal_gets_no_frames_and_the_log_has_them(crash, arguments, folder):
    """`tests/startup/reports/crash` shows when a terminal gets them all the same."""
    ours, theirs = pty.openpty()
    shown = command("--host", "127.0.0.1", "--port", str(free_port()), *arguments)
    env = environment(folder, **{_CRASH: crash})
    started = subprocess.Popen(shown, env=env, cwd=ROOT, stdout=theirs, stderr=theirs)
    os.close(theirs)
    lines = read_terminal(ours).replace("\r\n", "\n").splitlines()
    assert started.wait(60) == _FAILED
    message = crash.partition(":")[2]
    digest = _digest("\n".join(lines))
    assert any(f"CrashError: {message}" in line for line in lines[: -len(digest)]), "also before the digest"
    assert not [line for line in lines if "Traceback" in line or "  File " in line]
    log = Path(digest[-1].removeprefix("Log: ")).read_text()
    assert "Traceback (most recent call last)" in log
    assert "in crash_at" in log


def test_an_engine_that_has_ended_is_dead_only_if_vllm_counts_it_as_dead(folder):
    """With sleep level 3 (proposed in vLLM's issue 52125), an engine process ends and is restored later."""
    is_dead = "manager is not None and not manager.process.is_alive()"
    fake = rewrite(variant(folder), f"return {is_dead}", f"return not manager and {is_dead}")
    with FakeStart(folder, env=environment(folder, fake)) as start:
        start.wait_ready()
        engine = start.named("VLLM::EngineCor").pid
        os.kill(engine, signal.SIGKILL)
        wait_until(lambda: is_gone(engine))
        for _ in range(20):  # the watch looks four times a second
            time.sleep(0.1)
            assert start.health() == 200
        assert start.terminate() == 0
