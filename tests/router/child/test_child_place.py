"""What ends a router's processes after the router."""

import os
import signal

import pytest

from router.child.place import Guard


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_right_after_the_fork_does_not_end_the_guard(number, tmp_path, monkeypatch):
    """Sent to the router's process group, of which the guard is a member until it calls `setsid`."""
    folder = tmp_path / "places"
    folder.mkdir()
    setsid = os.setsid

    def signal_then_leave() -> None:
        os.kill(os.getpid(), number)
        setsid()

    monkeypatch.setattr(os, "setsid", signal_then_leave)
    Guard.start(str(folder)).close()
    assert not folder.exists()
