"""A fork equals a process that `exec` has made, or names the difference."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from startup.standby import process_state
from tests.support.cli import python_output
from tests.support.containers import as_user, own_cgroup, works

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(120)]

_SNAPSHOT = """
import json, os, sys
import vllm_cli.own_packages
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
    """The state of the process in /proc."""
    interpreter: dict[str, str]


@contextmanager
def started(*launcher: str) -> Iterator[Started]:
    """Yields a process that the launcher has started. The process ends with the block."""
    command = [*launcher, sys.executable, "-c", _STARTED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        yield Started(**answer)
        process.stdin.close()
    assert process.returncode == 0


class Forked(NamedTuple):
    """A fork that has taken over a process's state, or has a reason not to."""

    reason: str | None
    shown: dict[str, str]


def forked(pid: int, *launcher: str) -> Forked:
    """Forks a template that the launcher starts, and lets the fork take over the state of process `pid`."""
    return Forked(*json.loads(python_output(_TEMPLATE, pid, launcher=launcher)))


_TAKEN_OVER = """
os.umask(0o027)
resource.setrlimit(resource.RLIMIT_NOFILE, (512, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
open('/proc/self/oom_score_adj', 'w').write('300')
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):  # nohup, and sh's background
    signal.signal(number, signal.SIG_IGN)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
"""

_LIBC = """
import ctypes, struct
allow_all = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000), 8)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(allow_all)), 16)
assert ctypes.CDLL(None, use_errno=True)."""
_SET_MEMPOLICY = {"x86_64": 238}.get(platform.machine(), -1)
_DIFFERENCES = {
    "the nice value differs: ": after("os.nice(5)"),
    "the scheduling policy differs: ": after("os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))"),
    "the I/O priority differs: ": after("psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)"),
    "Cpus_allowed_list differs: ": after("os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})"),
    "/proc/PID/coredump_filter differs: ": after("open('/proc/self/coredump_filter', 'w').write('0x7')"),
    "the soft limit RLIMIT_STACK differs: ": after("resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, -1))"),
    "THP_enabled differs: ": after(f"{_LIBC}prctl(41, 1, 0, 0, 0) == 0"),
    "Seccomp differs: ": after(f"{_LIBC}prctl(22, 2, program) == 0"),
    "the memory policy differs: ": after(
        f"{_LIBC}syscall({_SET_MEMPOLICY}, 3, ctypes.byref(ctypes.c_ulong(1)), 64) == 0"
    ),
    "the net namespace differs": ("unshare", "-n"),
    "the mnt namespace differs": ("unshare", "-m"),
    "the time namespace differs": ("unshare", "-T"),
    "Cap": ("unshare", "-U"),
    "Groups differs": ("setpriv", "--groups", "12345"),
    "CapPrm differs": ("setpriv", "--bounding-set", "-sys_time"),
}
"""What is not taken over -> a launcher that makes this difference. A launcher that fails is skipped."""


@pytest.mark.parametrize(
    ("change", "launcher"),
    [("pass", ()), (_TAKEN_OVER, ()), ("pass", after(_TAKEN_OVER))],
    ids=["nothing", "both_directions", "settings of the template"],
)
def test_a_fork_equals_the_executed_process_in_everything_that_proc_shows(change, launcher):
    with started(*after(change)) as executed:
        fork = forked(executed.pid, *launcher)
    assert fork == (None, executed.shown)


@pytest.mark.parametrize(("reason", "launcher"), _DIFFERENCES.items(), ids=_DIFFERENCES.keys())
def test_what_is_not_taken_over_is_named(reason, launcher):
    _skip_without(*launcher)
    with started(*launcher) as executed:
        assert (forked(executed.pid).reason or "").startswith(reason)


def test_a_process_that_has_ended_has_no_state():
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        for read in (process_state.take_over, process_state.why_not_equal):
            with pytest.raises(ProcessLookupError, match="has ended"):
                read(process.pid)


def test_another_user_is_named():
    with started(*_user()) as executed:
        assert (forked(executed.pid).reason or "").startswith("Uid differs: 12345")


def test_another_root_directory_is_named(tmp_path):
    """A bind mount has the device and inode of its source folder."""
    _skip_without("unshare", "-m")
    holder = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"mount --rbind / {tmp_path} && echo ready && cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == "ready\n"
        inside = ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt")
        with started(*inside, "chroot", str(tmp_path)) as executed:
            fork = forked(executed.pid, *inside)
        holder.stdin.close()
    assert (fork.reason or "").startswith("the root directory differs")


@pytest.mark.parametrize(
    ("launcher", "reason"),
    [
        pytest.param(("prlimit", "--nofile=256:256"), "RLIMIT_NOFILE could not be set to", id="hard_limit"),
        pytest.param(("choom", "-n", "300", "--"), None, id="oom_score_stays_higher"),
    ],
)
def test_a_setting_that_needs_privileges(launcher, reason):
    user = _user()
    _skip_without(*launcher)
    with started(*user) as executed:
        fork = forked(executed.pid, *launcher, *user)
    assert (fork.reason or "").startswith(reason or "") and bool(fork.reason) == bool(reason)


@pytest.mark.parametrize(
    ("launcher", "reason"),
    [
        pytest.param(("env", "PYTHONWARNINGS=error"), "the list of Python's warning filters differs", id="warnings"),
        pytest.param(("env", "PYTHONOPTIMIZE=1"), "the set of Python's flags differs", id="flags"),
        pytest.param(("env", "PYTHONUTF8=0", "LC_ALL=C", "PYTHONCOERCECLOCALE=0"), "the ", id="encoding"),
        pytest.param(("setarch", "-R"), "the personality differs", id="personality"),
        pytest.param(("env", "LC_ALL=C.UTF-8"), None, id="locale"),
    ],
)
def test_another_interpreter_is_named(launcher, reason):
    _skip_without(*launcher)
    with started() as usual, started(*launcher) as executed:
        found = process_state.first_difference(executed.interpreter, usual.interpreter)
    assert (found or "").startswith(reason or "") and bool(found) == bool(reason)


@pytest.fixture
def new_cgroup() -> Iterator[Path]:
    with own_cgroup() as folder:
        if folder is None:
            pytest.skip("cgroups of version 2 must not be made here")
        yield folder


@pytest.mark.parametrize("is_template_inside", [True, False])
def test_a_fork_moves_into_the_cgroup_of_the_started_process(new_cgroup, is_template_inside):
    launcher, of_template = ((), _inside(new_cgroup)) if is_template_inside else (_inside(new_cgroup), ())
    with started(*launcher) as executed:
        fork = forked(executed.pid, *of_template)
    assert fork == (None, executed.shown)
    assert (new_cgroup.name in fork.shown["cgroup"]) != is_template_inside  # type: ignore[attr-defined]


def test_a_fork_that_must_not_move_stays_in_a_cgroup_with_the_same_limits(new_cgroup):
    user = _user()
    with started(*_inside(new_cgroup), *user) as executed:
        fork = forked(executed.pid, *user)
    assert fork.reason is None
    assert new_cgroup.name not in fork.shown["cgroup"]


@pytest.mark.parametrize(
    ("own", "theirs", "differing"),
    [
        pytest.param({}, {}, None, id="no_files"),
        pytest.param({"a/memory.max": "max"}, {"b/c/memory.max": "max"}, None, id="depth"),
        pytest.param({"a/memory.max": "900"}, {"b/c/memory.max": "900"}, None, id="same_limit"),
        pytest.param({"a/memory.max": "900"}, {"b/memory.max": "900"}, None, id="limit_of_parent"),
        pytest.param({"a/memory.max": "900"}, {"b/memory.max": "800"}, "memory.max", id="other_limit"),
        pytest.param({"a/cpu.max": "50000 100000"}, {"b/c/cpu.max": "max 100000"}, "cpu.max", id="quota"),
        pytest.param({"a/cpu.weight": "100"}, {"b/c/cpu.weight": "20"}, "cpu.weight", id="weight"),
        pytest.param({"memory.max": "5"}, {"b/c/memory.max": "max"}, None, id="common_parent"),
        pytest.param({"a/pids.max": "max"}, {"b/c/pids.max": "4915"}, None, id="number_of_threads"),
    ],
)
def test_limits_of_all_ancestors_count(own, theirs, differing, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name, text in (own | theirs).items():
        (tmp_path / name).write_text(f"{text}\n")
    here, there = (process_state._limits_of(tmp_path / name, tmp_path) for name in ("a", "b/c"))
    assert {limit.partition("=")[0] for limit in here ^ there} == ({differing} if differing else set())


def _inside(folder: Path) -> tuple[str, ...]:
    return after(f"open('{folder}/cgroup.procs', 'w').write('0')")


def _skip_without(*launcher: str) -> None:
    if not works(*launcher, "true"):
        pytest.skip(f"{launcher[0]} does not work here")


def _user() -> tuple[str, ...]:
    user = as_user(12345, 12345, Path(sys.executable))
    if user is None:
        pytest.skip("needs root")
    return user
