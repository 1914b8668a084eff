"""A process that forks has no second thread, and no open files of learned imports."""

from pathlib import Path

import pytest

from tests.e2e.server_process import ServerProcess
from tests.startup.vllm.fake_start import FAKE, ROOT, FakeStart, environment
from tests.support.folders import short_folder

_HOOK = """
import os, sys

def note(event, args):
    if event == "os.fork":
        learned = sys.modules.get("startup.imports.learned_imports")
        is_learning = learned is not None and learned._is_open
        function = sys._getframe(1).f_code.co_name
        with open({path!r}, "a") as file:
            print(function, len(os.listdir("/proc/self/task")), int(is_learning), file=file)

sys.addaudithook(note)
"""
"""With this code, every Python process records its forks: function, number of threads, whether it learns."""


def _hook(folder: Path) -> None:
    (folder / "sitecustomize.py").write_text(_HOOK.format(path=str(folder / "forks")))


def _assert_clean(folder: Path, *expected: str) -> None:
    """Checks that these functions forked with one thread, and that no fork was during learned imports."""
    forks = [line.split() for line in (folder / "forks").read_text().splitlines()]
    num_threads = {function: number for function, number, _ in forks if function in expected}
    assert num_threads == dict.fromkeys(expected, "1")
    assert {is_learning for _, _, is_learning in forks} == {"0"}


@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_responder_and_forkserver_are_forked_before_a_second_thread(tiny_llama, tmp_path, method):
    _hook(tmp_path)
    settings = {"PYTHONPATH": str(tmp_path), "VLLM_WORKER_MULTIPROC_METHOD": method, "VCLI_STANDBY": "off"}
    with ServerProcess([str(tiny_llama)], environment=settings) as server:
        assert server.complete(max_tokens=1) == 200
    _assert_clean(tmp_path, "start", *(["fork_dormant"] if method == "forkserver" else []))


def test_vllms_responder_is_forked_before_a_second_thread(tmp_path):
    _hook(tmp_path)
    with short_folder() as folder:
        settings = environment(folder, PYTHONPATH=f"{tmp_path}:{FAKE}:{ROOT}")
        with FakeStart(folder, "org/model", env=settings) as start:
            start.wait_ready()
    _assert_clean(tmp_path, "start")
