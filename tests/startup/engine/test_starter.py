"""A start in a thread gets the interpreter lock quickly and restores the setting."""

import sys

import pytest

from startup.engine.process import EngineProcess
from startup.engine.starter import BackgroundStart


def _fail() -> EngineProcess:
    raise OSError("no process")


def test_the_switch_interval_is_restored_after_a_start():
    before = sys.getswitchinterval()
    start = BackgroundStart(_fail)
    assert sys.getswitchinterval() < before
    with pytest.raises(OSError, match="no process"):
        start.wait()
    assert sys.getswitchinterval() == before


def test_the_switch_interval_is_restored_after_an_abandoned_start():
    before = sys.getswitchinterval()
    assert BackgroundStart(_fail).abandon() is None
    assert sys.getswitchinterval() == before
