"""The guard, which ends a router's processes after the router has ended."""

import os
import signal

import pytest

from router.child.place import Guard


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_right_after_the_fork_does_not_end_the_guard(number, tmp_path, monkeypatch):
    """The signal goes to the router's process group. The guard is in this group until it calls `setsid`."""
    folder = tmp_path / "places"
    folder.mkdir()
    setsid = os.setsid

    def signal_then_leave() -> None:
        os.kill(os.getpid(), number)
        setsid()

    monkeypatch.setattr(os, "setsid", signal_then_leave)
    Guard.start(str(folder)).close()
    assert not folder.exists()
