"""Real processes for the tests of process state: a client, and a template whose fork takes over its state.

Both print JSON. A client lives until it is closed: its I/O priority is read while the fork applies its state.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SNAPSHOT = """
import json, os, sys
from startup.standby import process_state

VOLATILE = ("Name State Tgid Ngid Pid PPid FDSize NStgid NSpid NSpgid NSsid HugetlbPages Threads SigQ SigPnd ShdPnd "
            "voluntary_ctxt_switches nonvoluntary_ctxt_switches").split()
FILES = ("limits cgroup cpuset oom_score_adj timerslack_ns coredump_filter personality loginuid attr/current uid_map "
         "gid_map projid_map setgroups mountinfo timens_offsets").split()

def text(name):
    try:
        with open("/proc/self/" + name) as file:
            return file.read()
    except OSError as error:
        return error.strerror

def snapshot():
    import psutil
    lines = dict(line.split(":", 1) for line in text("status").splitlines())
    shown = {name: text(name) for name in FILES}
    shown |= {name: value for name, value in lines.items()
              if name not in VOLATILE and not name.startswith(("Vm", "Rss"))}
    shown |= {line.split(":")[0].strip(): line for line in text("sched").splitlines()
              if line.startswith(("policy", "prio", "uclamp"))}
    shown |= {"ns " + name: os.readlink("/proc/self/ns/" + name) for name in os.listdir("/proc/self/ns")}
    shown["I/O priority"] = repr(psutil.Process().ionice())
    return shown
"""

_CLIENT = f"""{_SNAPSHOT}
state = process_state.capture()
print(json.dumps({{"facts": state.facts, "settings": state.settings, "shown": snapshot()}}), flush=True)
sys.stdin.read()
"""

_TEMPLATE = f"""{_SNAPSHOT}
import signal
from startup.standby import state_change
state = json.load(sys.stdin)
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGHUP, lambda *_: None)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
if (pid := os.fork()) == 0:
    result = {{"differs": process_state.why_not_equal(state["facts"])}}
    if result["differs"] is None:
        result["refused"] = state_change.apply(state["settings"])
    now = process_state.capture()
    result |= {{"facts": now.facts, "settings": now.settings, "shown": snapshot()}}
    print(json.dumps(result), flush=True)
    os._exit(0)
os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""

_CHANGE = "import os, sys; exec(sys.argv[1]); os.execvp(sys.argv[2], sys.argv[2:])"


def after(change: str) -> tuple[str, ...]:
    """A launcher that runs Python code before it executes the program."""
    return (sys.executable, "-c", f"import psutil, resource, signal\n{_CHANGE}", change)


@contextmanager
def client(*launcher: str, options: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """What a process started by the launcher captured; `shown` is what /proc shows of it."""
    command = [*launcher, sys.executable, *options, "-c", _CLIENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.stdin.close()
    assert process.returncode == 0


def forked(state: dict[str, Any], *launcher: str) -> dict[str, Any]:
    """What a template's fork answers to a client's state, and its own state afterwards."""
    command = [*launcher, sys.executable, "-c", _TEMPLATE]
    result = subprocess.run(command, input=json.dumps(state), capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
