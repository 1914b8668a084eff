"""The standby goes on when several template processes end at once."""

from tests.cli import run_python
from tests.startup.vllm.fake_start import short_folder

_DYING = """
import os, selectors, signal, sys
from startup.standby import standby

class SignalsFirst(selectors.DefaultSelector):
    has_killed = False

    def select(self, timeout=None):
        if self.has_killed:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().select(timeout)
        self.has_killed = True
        for key in self.get_map().values():
            if key.data is not None:
                key.data._process.kill()
                os.waitid(os.P_PID, key.data._process.pid, os.WEXITED | os.WNOWAIT)
        events = super().select(0)
        assert len(events) == 3
        return sorted(events, key=lambda event: event[0].data is not None)

selectors.DefaultSelector = SignalsFirst
sys.exit(standby.run_standby(standby.StandbyOptions(kinds=("embedded", "vllm-eager"))))
"""


def test_a_signal_and_the_end_of_a_channel_may_report_the_same_end() -> None:
    with short_folder() as folder:
        done = run_python(_DYING, environment={"XDG_RUNTIME_DIR": str(folder)})
    assert done.returncode == 0, done.stderr
