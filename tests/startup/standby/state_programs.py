"""Real processes for the tests of process state: a started one, and a template whose fork takes it over."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

_SNAPSHOT = """
import json, os, sys
from startup.standby import process_state

VOLATILE = ("Name State Tgid Ngid Pid PPid FDSize NStgid NSpid NSpgid NSsid HugetlbPages Threads SigQ SigPnd ShdPnd "
            "SigCgt voluntary_ctxt_switches nonvoluntary_ctxt_switches").split()
FILES = ("limits cgroup cpuset oom_score_adj coredump_filter personality loginuid attr/current uid_map gid_map "
         "projid_map setgroups mountinfo timens_offsets comm").split()

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
              if line.startswith(("policy", "prio"))}
    shown |= {"ns " + name: os.readlink("/proc/self/ns/" + name) for name in os.listdir("/proc/self/ns")}
    shown["I/O priority"] = repr(psutil.Process().ionice())
    return shown
"""

_STARTED = f"""{_SNAPSHOT}
from startup.standby.front_process import interpreter_state
print(json.dumps({{"pid": os.getpid(), "shown": snapshot(), "interpreter": interpreter_state()}}), flush=True)
sys.stdin.read()
"""

_TEMPLATE = f"""{_SNAPSHOT}
import signal
pid = int(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGHUP, lambda *_: None)
signal.signal(signal.SIGINT, signal.SIG_IGN)
if (child := os.fork()) == 0:
    reason = process_state.why_not_equal(pid) or process_state.take_over(pid)
    print(json.dumps([reason, snapshot()]), flush=True)
    os._exit(0)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

_CHANGE = "import os, sys; exec(sys.argv[1]); os.execvp(sys.argv[2], sys.argv[2:])"


def after(change: str) -> tuple[str, ...]:
    """A launcher that runs Python code before it executes the program."""
    return (sys.executable, "-c", f"import psutil, resource, signal\n{_CHANGE}", change)


class Started(NamedTuple):
    """A process that `exec` has made."""

    pid: int
    shown: dict[str, str]
    """What /proc shows of it."""
    interpreter: dict[str, str]


@contextmanager
def started(*launcher: str) -> Iterator[Started]:
    """A process that the launcher starts; it ends with the block."""
    command = [*launcher, sys.executable, "-c", _STARTED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        yield Started(**answer)
        process.stdin.close()
    assert process.returncode == 0


class Forked(NamedTuple):
    """A fork that has taken over a process's state, or not."""

    reason: str | None
    shown: dict[str, str]


def forked(pid: int, *launcher: str) -> Forked:
    """A fork of a template that the launcher has started."""
    command = [*launcher, sys.executable, "-c", _TEMPLATE, str(pid)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return Forked(*json.loads(result.stdout))
