"""Which tests are `thorough` by what they start."""

import pytest

from tests.tiers import find_names

_SPEND = """
import time, subprocess, sys, pytest

SPEND = "import time; end = time.process_time() + 0.3\\nwhile time.process_time() < end: pass"
"""


def _run(pytester: pytest.Pytester, text: str, *words: str) -> pytest.RunResult:
    pytester.makepyfile(text)
    words = ("-p", "tests.tiers", "-p", "no:cacheprovider", *words)
    return pytester.runpytest_inprocess("-q", *words)


def test_names_are_found_through_functions_of_the_tests() -> None:
    def inner() -> None:
        _run(None, "")  # type: ignore[arg-type]

    assert {"_run", "makepyfile", "runpytest_inprocess"} <= find_names(inner)
    assert "Path" not in find_names(inner)


def test_a_test_that_starts_a_program_is_thorough_without_a_mark(pytester: pytest.Pytester) -> None:
    text = """
import pytest

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
def test_without(): pass
"""
    _run(pytester, text, "-m", "thorough", "-v").assert_outcomes(passed=2, deselected=2)
