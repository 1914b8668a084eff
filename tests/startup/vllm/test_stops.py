"""A signal during a start of vLLM, or a second one during its drain: every process ends, whatever it does."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e.stream_reader import StreamReader
from tests.processes import shared_memory
from tests.startup.vllm.fake_start import FakeStart, environment, prepend, rewrite, variant
from tests.waiting import wait_until

pytestmark = pytest.mark.thorough

_WAITS = "import time\nprint('waits here', flush=True)\nwhile True:\n    time.sleep(0.01)\n"
_CATCHES = "import time\ntry:\n    print('waits here', flush=True)\n    time.sleep(60)\nexcept:\n    pass\n"
_IN_CONFIGURATION = "    while args.config_gate and"
_WORKER_MAIN = '        signal.signal(signal.SIGINT, signal.SIG_IGN)\n        set_process_title(f"Worker'
_NO_REPEAT_S = 0.6
"""A signal that comes sooner is taken for the same one, sent twice."""


class _Stage(NamedTuple):
    """A point of the start at which it waits."""

    phase: str
    words: tuple[str, ...] = ("--gate", "closed")
    change: Callable[[Path], Any] = str
    """Of the fake vLLM, so that it waits there."""
    lines: tuple[str, ...] = ("VllmWorker-0 prints a line",)
    """The log has them when the start waits."""


def _hang(fake: Path) -> None:
    """The engine ignores SIGTERM, and vLLM waits for it."""
    rewrite(fake, "lambda number, frame: sys.exit(0)", "lambda number, frame: None")
    rewrite(fake, "self.process.join(30)", "self.process.join(600)")


def _importing(module: str, code: str, phase: str) -> _Stage:
    return _Stage(phase, (), lambda fake: prepend(fake, module, code), ("waits here",))


_STAGES = {
    "imports": _importing("entrypoints/launcher", _WAITS, "import vllm"),
    "imports that catch every error": _importing("entrypoints/launcher", _CATCHES, "import vllm"),
    "configuration": _Stage(
        "create config of APIServer",
        ("--config-gate", "closed"),
        lambda fake: rewrite(fake, _IN_CONFIGURATION, f"    print('waits here', flush=True)\n{_IN_CONFIGURATION}"),
        ("waits here",),
    ),
    "engine": _Stage("asyncmpclient init of APIServer"),
    "engine that hangs": _Stage("asyncmpclient init of APIServer", change=_hang),
    "several API servers": _Stage("vllm", ("--gate", "closed", "--api-server-count", "2")),
    "imports beside the engine": _Stage(
        "", (), lambda fake: prepend(fake, "kernels", _WAITS), ("waits here", "VllmWorker-0 prints a line")
    ),
    "worker that has no handlers yet": _Stage(
        "",
        (),
        lambda fake: rewrite(fake, _WORKER_MAIN, f"        exec({_WAITS!r})\n{_WORKER_MAIN}"),
        ("waits here",),
    ),
}


@pytest.mark.parametrize("to", ["process", "group"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
@pytest.mark.parametrize("stage", _STAGES)
def test_a_stopped_start_ends_with_one_line_and_leaves_nothing(folder, stage, number, code, to):
    phase, words, change, lines = _STAGES[stage]
    fake = variant(folder)
    change(fake)
    with FakeStart(folder, *words, env=environment(folder, fake)) as start:
        for line in lines:
            start.wait_for_line(line)
        wait_until(lambda: start.get("/health")[0] == 503 and start.forkservers())
        memory = shared_memory(start.record_tree())
        before = len(start.text)
        (os.killpg if to == "group" else os.kill)(start.process.pid, number)
        assert start.process.wait(60) == code
        start.wait_until_tree_is_gone()
        written = start.text[before:]
        name = signal.Signals(number).name
        assert written.count(f"stopped by {name} during the start, in phase {phase}") == 1, written
        for word in ("Traceback", "Cause:", "leaked", "failed"):
            assert word not in written
    assert {path.name for path in folder.iterdir()} <= {"cache", "fake", start.log.name}
    wait_until(lambda: not any(path.exists() for path in memory))  # the resource tracker ends last


@pytest.mark.parametrize("words", [(), ("--api-server-count", "2")], ids=["one API server", "two"])
def test_a_second_signal_ends_a_server_whose_engine_hangs(folder, words):
    fake = variant(folder)
    _hang(fake)
    with FakeStart(folder, "--shutdown-timeout", "600", *words, env=environment(folder, fake)) as start:
        start.wait_until_ready()
        stream = StreamReader(f"http://127.0.0.1:{start.port}", 1_000_000)
        start.record_tree()
        start.process.send_signal(signal.SIGTERM)
        time.sleep(_NO_REPEAT_S)
        start.process.send_signal(signal.SIGTERM)
        assert start.process.wait(60) == 0
        start.wait_until_tree_is_gone()
        stream.finish()
