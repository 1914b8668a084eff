"""After signals and kills, all processes of vLLM end. In a drain, running requests finish first."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.startup.vllm.fake_start import FakeStart, broken_environment, command, environment, prepend, rewrite, variant
from tests.support.http_client import SOON_REFUSALS, RawClient, StreamReader, ask, count_refusals
from tests.support.waiting import is_gone, shared_memory, wait_until

pytestmark = pytest.mark.thorough


_WAITS = "import time\nprint('waits here', flush=True)\nwhile True:\n    time.sleep(0.01)\n"
_CATCHES = "import time\ntry:\n    print('waits here', flush=True)\n    time.sleep(60)\nexcept:\n    pass\n"
_WORKER_MAIN = '        signal.signal(signal.SIGINT, signal.SIG_IGN)\n        set_process_title(f"Worker'


class _Stage(NamedTuple):
    """A point at which a start waits."""

    phase: str
    arguments: tuple[str, ...] = ("--gate", "closed")
    change: Callable[[Path], Any] = str
    """Changes the fake vLLM, so that it waits at this point."""
    lines: tuple[str, ...] = ("EngineCore waits at its gate",)
    """Lines that the log has when the start waits."""


def _hang(fake: Path) -> None:
    """Changes the fake vLLM: its engine ignores SIGTERM, and vLLM waits for the engine."""
    rewrite(fake, "lambda number, frame: sys.exit(0)", "lambda number, frame: None")
    rewrite(fake, "self.process.join(30)", "self.process.join(600)")


def _importing(module: str, code: str, phase: str) -> _Stage:
    return _Stage(phase, (), lambda fake: prepend(fake, module, code), ("waits here",))


def test_a_signal_right_after_the_first_answer_is_the_servers(folder):
    """The signal may come before the launcher knows that the server accepts connections."""
    with FakeStart(folder, env=broken_environment(folder, "late readiness")) as start:
        assert start.wait_ready().terminate(signal.SIGINT) == 0


_STAGES = {
    "imports": _importing("entrypoints/launchers/launcher", _WAITS, "import vllm"),
    "imports that catch every error": _importing("entrypoints/launchers/launcher", _CATCHES, "import vllm"),
    "engine": _Stage("asyncmpclient init of APIServer"),
    "engine that hangs": _Stage("asyncmpclient init of APIServer", change=_hang),
    "several API servers": _Stage("vllm", ("--gate", "closed", "--api-server-count", "2")),
    "worker that has no handlers yet": _Stage(
        "", (), lambda fake: rewrite(fake, _WORKER_MAIN, f"        exec({_WAITS!r})\n{_WORKER_MAIN}"), ("waits here",)
    ),
}


_OF_A_TERMINAL = (signal.SIGINT, 130, "group")


@pytest.mark.parametrize(
    ("stage", "sender"),
    [
        *((stage, (signal.SIGTERM, -signal.SIGTERM, "process")) for stage in _STAGES),
        *((stage, _OF_A_TERMINAL) for stage in ("imports", "engine", "worker that has no handlers yet")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[2],
)
def test_a_stopped_start_ends_with_one_line_and_leaves_nothing(folder, stage, sender):
    number, code, to = sender
    phase, arguments, change, lines = _STAGES[stage]
    fake = variant(folder)
    change(fake)
    with FakeStart(folder, *arguments, env=environment(folder, fake)) as start:
        for line in lines:
            start.wait_logged(line)
        wait_until(lambda: start.ask("/health")[0] == 503 and start.forkservers())
        memory = shared_memory(start.family())
        before = len(start.log)
        (os.killpg if to == "group" else os.kill)(start.process.pid, number)
        assert start.process.wait(60) == code
        start.wait_all_gone()
        written = start.log[before:]
        name = signal.Signals(number).name
        assert written.count(f"stopped by {name} during the start, in phase {phase}") == 1, written
        for argument in ("Traceback", "Cause:", "leaked", "failed"):
            assert argument not in written
    assert {path.name for path in folder.iterdir()} <= {"cache", "fake", start.log_path.name}
    wait_until(lambda: not any(path.exists() for path in memory))  # the resource tracker ends last


def test_a_second_signal_ends_a_server_whose_engine_hangs(folder):
    fake = variant(folder)
    _hang(fake)
    with FakeStart(folder, "--shutdown-timeout", "600", env=environment(folder, fake)) as start:
        start.wait_ready()
        stream = StreamReader(start.url, 1_000_000)
        _stop(start)
        start.signal_again()
        assert start.process.wait(60) == 0
        start.wait_all_gone()
        stream.finish()


@pytest.mark.parametrize(
    "arguments", [(), ("--api-server-count", "2"), ("--headless",)], ids=["one", "several", "none"]
)
def test_a_killed_launcher_leaves_no_process(arguments, folder):
    with FakeStart(folder, "--tensor-parallel-size", "2", *arguments) as start:
        if "--headless" in arguments:
            start.wait_logged("headless engine")
        else:
            start.wait_ready()
        assert {"VLLM::EngineCor", "VLLM::Worker_0", "VLLM::Worker_1"} <= start.titles()
        start.process.kill()


_STARTS_A_PROGRAM = """
import subprocess, sys
subprocess.Popen(
    [sys.executable, "-c", "import subprocess, time; subprocess.Popen(['sleep', '4321']); time.sleep(4321)"],
    start_new_session=True,
)
"""


@pytest.mark.parametrize(
    ("arguments", "number", "code"),
    [((), signal.SIGKILL, -9), ((), signal.SIGTERM, 0), (("--engine-fails",), None, 3)],
    ids=["killed", "stopped", "failed"],
)
def test_programs_that_an_engine_has_started_end_with_the_launcher(arguments, number, code, folder):
    """Also programs that these programs have started end."""
    fake = prepend(variant(folder), "v1/engine/core", _STARTS_A_PROGRAM)
    with FakeStart(folder, *arguments, env=environment(folder, fake)) as start:
        if number is not None:
            start.wait_ready()
            assert sum("4321" in " ".join(process.cmdline()) for process in start.family()) >= 2
            start.process.send_signal(number)
        start.wait(lambda: (start.family(), start.process.poll())[1] is not None)
        assert start.process.returncode == code


def test_a_program_that_reads_the_output_gets_all_of_it(folder):
    """The program is a child of the launcher, because the shell that started it has executed the launcher."""
    read = folder / "read"
    arguments = [*command("--engine-fails"), "--port", "0"]
    script = 'out=$1; shift; exec "$@" > >(cat > "$out") 2>&1'
    subprocess.run(["bash", "-c", script, "bash", read, *arguments], env=environment(folder), cwd=folder, timeout=60)
    wait_until(lambda: "\nLog: " in read.read_text())


def test_a_running_server_does_not_need_the_forkserver(folder):
    with FakeStart(folder) as start:
        (forkserver,) = start.wait_ready().forkservers()
        forkserver.kill()
        wait_until(lambda: is_gone(forkserver.pid))
        assert start.complete("A text") == "A text was read by worker 0"
        assert start.terminate() == 0


_ENDLESS = 1_000_000


@pytest.fixture
def start(folder: Path, request: pytest.FixtureRequest) -> Iterator[FakeStart]:
    """A ready server. The parameter is the time for running requests."""
    arguments = ("--shutdown-timeout", str(request.param)) if request.param is not None else ()
    with FakeStart(folder, "model", *arguments) as started:
        yield started.wait_ready()


def _stop(start: FakeStart) -> None:
    """Sends SIGTERM and waits until new requests are rejected."""
    start.family()
    start.process.send_signal(signal.SIGTERM)
    wait_until(lambda: ask(f"{start.url}/health").status == 503)


def _begin_to_read(start: FakeStart, prompt: str) -> RawClient:
    """A client that has read the first bytes of an endless stream."""
    client = RawClient(start.port)
    client.post("/v1/completions", {"prompt": prompt, "max_tokens": _ENDLESS, "stream": True}).read_head()
    return client


@pytest.mark.parametrize(("start", "is_killed"), [(None, True), (600, False)], indirect=["start"])
def test_after_the_drain_the_engine_is_killed_unless_a_timeout_is_given(start, is_killed):
    assert start.terminate() == 0, start.log[-8000:]
    assert bool(start.lines_with("the engine is killed")) == is_killed


@pytest.mark.parametrize("start", [None], indirect=True)
def test_an_idle_server_closes_its_port_although_a_client_goes_on_asking(start):
    assert count_refusals(start.url, start.process.terminate) <= SOON_REFUSALS
    assert start.process.wait(60) == 0


@pytest.mark.parametrize("start", [1], indirect=True)
def test_a_client_that_does_not_read_holds_nothing_up(start):
    with closing(_begin_to_read(start, "x" * 1_000_000)):  # more than the sockets hold
        assert start.terminate() == 0, start.log[-8000:]


@pytest.mark.parametrize("start", [600], indirect=True)
def test_an_engine_that_dies_ends_the_drain(start):
    """The engine's requests fail, so the drain has nothing to wait for."""
    engine = start.named("VLLM::EngineCor")
    with closing(_begin_to_read(start, "a")) as client:
        _stop(start)
        engine.kill()
        client.read_to_end()
    assert start.process.wait(60) == 0
