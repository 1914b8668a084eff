"""What `stop` waits for; with running servers: `tests/e2e/test_ps_and_stop.py`."""

import subprocess
import sys
from math import inf

from vllm_cli.client.running_servers import RunningServer
from vllm_cli.commands import stop

_STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"


def test_a_killed_process_has_ended_although_its_parent_does_not_wait_for_it(monkeypatch):
    monkeypatch.setattr(stop, "_AFTER_KILL_S", inf)
    with subprocess.Popen([sys.executable, "-c", _STUBBORN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        server = RunningServer(
            pid=process.pid,
            port=None,
            address=None,
            model="tiny",
            engine="embedded",
            state="ready",
            uptime_s=1.0,
            memory_bytes=0,
            pids=(process.pid,),
            forked_pid=None,
        )
        stopping = stop._StoppingServer(server)
        assert not stopping.is_done()
        stopping.kill()
        assert stopping.is_done()
        assert stopping.describe().endswith("was killed")
