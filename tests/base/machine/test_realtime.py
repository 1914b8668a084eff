"""Real-time priority ends while the process needs much CPU time."""

import os

import pytest

from tests.cli import run_python

pytestmark = pytest.mark.thorough

_PROGRAM = """
import os, time
from base.machine.realtime import RealtimePriority
priority = RealtimePriority(is_wanted={is_wanted})
policies = [os.sched_getscheduler(0)]
while time.process_time() < 1:
    pass
priority.turn(time.monotonic() + 1)
policies.append(os.sched_getscheduler(0))
priority.turn(time.monotonic() + 60)
policies.append(os.sched_getscheduler(0))
print(policies)
"""


def _policies(*, is_wanted: bool) -> str:
    return run_python(_PROGRAM.format(is_wanted=is_wanted), check=True).stdout.strip()


def _may_have_priority() -> bool:
    return run_python("import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))").returncode == 0


def test_a_process_that_needs_little_has_priority_again():
    if not _may_have_priority():
        pytest.skip("needs CAP_SYS_NICE")
    policies = [os.SCHED_FIFO, os.SCHED_OTHER, os.SCHED_FIFO]
    assert _policies(is_wanted=True) == str([policy | os.SCHED_RESET_ON_FORK for policy in policies])


def test_priority_is_not_taken_unless_wanted():
    assert _policies(is_wanted=False) == str([os.SCHED_OTHER] * 3)
