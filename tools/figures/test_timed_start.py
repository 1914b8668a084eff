"""What timed starts need: homes, processor time, a plugin of vLLM, and the engine of a server."""

import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from tests.support.waiting import wait_until
from tools.figures.killed_engine import find_engines
from tools.figures.processor_time import descendants_s
from tools.figures.record import ROOT
from tools.figures.timed_start import Homes


def test_a_home_and_its_copy_have_the_same_path_and_times(tmp_path):
    homes, found = Homes(tmp_path), []
    with homes.use("one") as home:
        (home / "cache").write_text(str(home))
        os.utime(home / "cache", (1, 1))
    homes.copy("one", "two")
    for name in ("one", "two"):
        with homes.use(name) as home:
            found.append((home, (home / "cache").read_text(), (home / "cache").stat().st_mtime))
            (home / name).touch()
    assert found[0] == found[1] == (found[0][0], str(found[0][0]), 1)
    assert [homes.has(name) for name in ("one", "two", "three")] == [True, True, False]
    with homes.use_once("new", copy_of="one") as home:
        assert sorted(path.name for path in home.iterdir()) == ["cache", "one"]
    with homes.use_once("new") as home:
        assert [*home.iterdir()] == []
    (tmp_path / "home" / "of a killed run").mkdir(parents=True)
    with Homes(tmp_path).use("four") as home:
        assert [*home.iterdir()] == []


# The kernel counts processor time in ticks of 10 ms, so a little less is read than was used.
_BURN = "import time\nwhile time.process_time() < 0.4: pass\n"
_CHILD_BURNS = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {_BURN!r}])\n"


def test_the_processor_time_has_processes_that_have_ended():
    """The child waits. Its own child has ended, and so has another process of this one."""
    before_s = descendants_s()
    subprocess.run([sys.executable, "-c", _BURN], check=True)
    assert descendants_s() - before_s >= 0.3
    waits = f"{_CHILD_BURNS}print('done', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert descendants_s() - before_s >= 0.6
        assert 0.3 <= descendants_s(child.pid) <= descendants_s() - before_s
        child.communicate()


_ADOPTS = """
import subprocess, sys, time
from tools.figures.processor_time import adopt_orphans, descendants_s
adopt_orphans()
subprocess.run(["sh", "-c", '"$@" & echo', "sh", sys.executable, "-c", sys.argv[1]], stdout=subprocess.DEVNULL)
end_s = time.monotonic() + 60
while descendants_s() < 0.3 and time.monotonic() < end_s:
    time.sleep(0.01)
print(descendants_s() >= 0.3)
"""


def test_the_processor_time_has_processes_whose_parent_has_ended():
    words = [sys.executable, "-c", _ADOPTS, _BURN]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "True\n", done.stderr


def test_only_the_engines_of_a_server_are_killed():
    script = "exec -a VLLM::EngineCore sleep 60 & exec -a VLLM::Worker sleep 60 & wait"
    with subprocess.Popen(["bash", "-c", script], start_new_session=True) as server:
        try:
            wait_until(lambda: find_engines(os.getpid()))
            [engine] = find_engines(server.pid)
            assert engine.cmdline() == ["VLLM::EngineCore", "60"]
        finally:
            os.killpg(server.pid, 9)


def test_vllm_finds_the_plugin_by_its_path():
    [plugin] = distributions(path=[str(Path(__file__).with_name("plugin"))])
    [entry] = plugin.entry_points
    assert (entry.group, entry.value) == ("vllm.general_plugins", "plugin_of_figures:register")
