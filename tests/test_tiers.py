"""Which tests are `thorough` by what they start, and the limit of processor time."""

from pathlib import Path

import pytest

from tests.tiers import find_names

_SPEND = """
import time, subprocess, sys, pytest

SPEND = "import time; end = time.process_time() + 0.3\\nwhile time.process_time() < end: pass"
"""


def _run(pytester: pytest.Pytester, text: str, *words: str) -> pytest.RunResult:
    pytester.makepyfile(_SPEND + text)
    words = ("-p", "tests.cpu_costs", "-p", "tests.tiers", "-p", "no:cacheprovider", "-o", "cpu_limit_s=0.05", *words)
    return pytester.runpytest_inprocess("-q", *words)


def test_names_are_found_through_functions_of_the_tests() -> None:
    def inner() -> None:
        _run(None, "")  # type: ignore[arg-type]

    assert {"_run", "makepyfile", "runpytest_inprocess"} <= find_names(inner)
    assert "Path" not in find_names(inner)


def test_a_test_that_starts_a_program_is_thorough_without_a_mark(pytester: pytest.Pytester) -> None:
    text = """
class FakeStart: pass

class Folder:
    def start(self): return FakeStart()

def start(): return Folder().start()

@pytest.fixture
def started(): return start()

def test_by_itself(): assert start()
def test_by_a_fixture(started): assert started
@pytest.mark.smoke
def test_one_of_a_kind(started): assert started
def test_without(): assert SPEND
"""
    _run(pytester, text, "-m", "thorough", "-v").assert_outcomes(passed=2, deselected=2)


def test_a_test_above_the_limit_fails_unless_it_is_marked(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))  # on a busy machine no test is judged
    text = """
def test_here(): exec(SPEND)
def test_in_a_child(): subprocess.run([sys.executable, "-S", "-c", SPEND])
def test_waiting(): time.sleep(0.2)
@pytest.mark.thorough
def test_marked(): exec(SPEND)
"""
    result = _run(pytester, text, "--costs", str(tmp_path / "build" / "costs.txt"))
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["*0.3* s of processor time; a test without a mark has 0.05 s*mark it `thorough`*"])
    lines = [line.split("\t") for line in (tmp_path / "build" / "costs.txt").read_text().splitlines()[1:]]
    costs = {line[-1].rpartition("::")[2]: (float(line[0]), line[-2]) for line in lines}
    assert list(costs)[-1] == "test_waiting"
    assert costs["test_marked"] == (pytest.approx(0.3, abs=0.15), "thorough")
    assert costs["test_in_a_child"][0] >= 0.3
