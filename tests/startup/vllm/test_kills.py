"""After a process is killed, its descendants exit, and all processes that do not depend on it go on."""

import signal

import pytest

from tests.startup.vllm.fake_start import FakeStart, environment, prepend, variant
from tests.waiting import is_gone, wait_until

pytestmark = pytest.mark.thorough

_ENGINE_DIED = 1


@pytest.mark.parametrize("words", [(), ("--api-server-count", "2"), ("--headless",)], ids=["one", "several", "none"])
def test_a_killed_launcher_leaves_no_process(words, folder):
    with FakeStart(folder, "--tensor-parallel-size", "2", *words) as start:
        if "--headless" in words:
            start.wait_for_line("headless engine")
        else:
            start.wait_until_ready()
        assert {"VLLM::EngineCor", "VLLM::Worker_0", "VLLM::Worker_1"} <= start.titles()
        start.process.kill()
        start.wait_until_tree_is_gone()


def test_a_launcher_killed_while_the_engine_starts_leaves_no_process(folder):
    with FakeStart(folder, "--gate", str(folder / "gate")) as start:
        start.wait_for_line("VllmWorker-0 prints a line")
        assert len(start.responders()) == 1
        start.record_tree()
        start.process.kill()
        start.wait_until_tree_is_gone()


def test_a_launcher_killed_while_the_forkserver_imports_leaves_no_process(folder):
    fake = variant(folder, v1__worker__cpu_worker="import time\nwhile True:\n    time.sleep(0.01)\n")
    with FakeStart(folder, env=environment(folder, fake)) as start:
        start.wait_until_answered(503)
        wait_until(start.forkservers)
        start.record_tree()
        start.process.kill()
        start.wait_until_tree_is_gone()


def test_a_launcher_that_is_stopped_while_it_imports_leaves_no_folder(folder):
    fake = prepend(variant(folder), "entrypoints/cli/main", "import time\nwhile True:\n    time.sleep(0.01)\n")
    with FakeStart(folder, env=environment(folder, fake)) as start:
        wait_until(lambda: start.forkservers() and list(folder.glob("vllm-cli-*")))
        start.process.terminate()
        assert start.process.wait(60) == -signal.SIGTERM
        assert list(folder.glob("vllm-cli-*")) == []


def test_a_start_that_times_out_leaves_no_process(folder):
    with FakeStart(folder, "--gate", str(folder / "gate"), "--startup-timeout", "2") as start:
        wait_until(lambda: (start.record_tree(), start.process.poll())[1] is not None)
        assert start.process.returncode == 3
        assert start.lines_with("the start took longer than --startup-timeout 2 s"), start.text
        start.wait_until_tree_is_gone()


@pytest.mark.parametrize("has_forkserver", [True, False], ids=["forkserver", "no-forkserver"])
def test_workers_end_with_their_engine_and_vllm_exits(has_forkserver, folder):
    with FakeStart(folder, "--tensor-parallel-size", "2") as start:
        engine = start.wait_until_ready().named("VLLM::EngineCor")
        if not has_forkserver:
            _kill_forkserver(start)
        engine.kill()
        assert start.process.wait(60) == _ENGINE_DIED
        digest = start.lines_with("Error: ")
        assert digest[-1].startswith("Error: EngineCore (pid ") if has_forkserver else digest, start.text
        start.wait_until_tree_is_gone()


def test_the_engine_outlives_the_forkserver(folder):
    with FakeStart(folder, "--tensor-parallel-size", "2") as start:
        engine = start.wait_until_ready().named("VLLM::EngineCor")
        _kill_forkserver(start)
        assert start.complete("A text") == "A text was read by worker 0"
        assert engine.is_running()
        assert start.process.poll() is None
        assert start.end() == 0
        start.wait_until_tree_is_gone()


def _kill_forkserver(start: FakeStart) -> None:
    (forkserver,) = start.forkservers()
    forkserver.kill()
    wait_until(lambda: is_gone(forkserver.pid))
