"""A fork that has taken over a client's process state equals the process that `exec` made of the client."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from startup.standby import process_state
from tests.containers import as_user
from tests.startup.standby.state_programs import after, client, forked

pytestmark = pytest.mark.timeout(120)

_CHANGES = {
    "nothing": "pass",
    "umask": "os.umask(0o027)",
    "open_files": "resource.setrlimit(resource.RLIMIT_NOFILE, (512, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))",
    "nice": "os.nice(5)",
    "batch": "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
    "affinity": "os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})",
    "oom_score": "open('/proc/self/oom_score_adj', 'w').write('300')",
    "core_dump_filter": "open('/proc/self/coredump_filter', 'w').write('0x7')",
    "timer_slack": "open('/proc/self/timerslack_ns', 'w').write('70000')",
    "nohup": "signal.signal(signal.SIGHUP, signal.SIG_IGN)",
    "background_of_sh": "[signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGQUIT)]",
    "no_broken_pipe": "signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
    "blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGRTMIN])",
    "idle_io": "psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)",
    "locale": "os.environ['LC_ALL'] = 'C.utf8'",
    "encoding": "os.environ['PYTHONIOENCODING'] = 'latin1:replace'",
}

_IRREVERSIBLE_CHANGES = {
    "most_open_files": "resource.setrlimit(resource.RLIMIT_NOFILE, (512, 4096))",
    "core_files": "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
    "locked_memory": "resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))",
    "processor_time": "resource.setrlimit(resource.RLIMIT_CPU, (3600, 7200))",
    "file_size": "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40, 1 << 40))",
    "closed_stream": "os.close(2)",
    "login_user": "open('/proc/self/loginuid', 'w').write('12345')",
}
"""Without privileges."""

_SYSTEM_CALLS = {
    "the use of transparent huge pages": "prctl(41, 1, 0, 0, 0)",
    "same-page merging": "prctl(67, 1, 0, 0, 0)",
    "the mitigation of speculative store bypass": "prctl(53, 0, 4, 0, 0)",
    "the seccomp mode": "prctl(22, 2, program)",
    "the memory policy": "syscall(238, 3, ctypes.byref(ctypes.c_ulong(1)), 64)",
}
"""Made by a process that then executes Python; the last one has this number on x86-64 only."""

_LIBC = """
import ctypes, struct
allow_all = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000), 8)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(allow_all)), 16)
assert ctypes.CDLL(None, use_errno=True)."""


@pytest.mark.parametrize(
    "change",
    [pytest.param(change, id=name) for name, change in (_CHANGES | _IRREVERSIBLE_CHANGES).items()],
)
def test_fork_equals_the_executed_process_in_everything_that_proc_shows(change: str) -> None:
    with client(*after(change)) as executed:
        fork = forked(executed)
    _assert_equal(fork, executed)


@pytest.mark.parametrize("change", _CHANGES.values(), ids=_CHANGES.keys())
def test_settings_of_the_template_do_not_remain(change: str) -> None:
    with client() as executed:
        fork = forked(executed, *after(change))
    _assert_equal(fork, executed)


@pytest.mark.parametrize(
    ("launcher", "reason"),
    [
        pytest.param(("unshare", "-n"), "the network namespace differs", id="network"),
        pytest.param(("unshare", "-m"), "the mount namespace differs", id="mounts"),
        pytest.param(("unshare", "-i"), "the IPC namespace differs", id="ipc"),
        pytest.param(("unshare", "-u"), "the host name namespace differs", id="host_name"),
        pytest.param(("unshare", "-C"), "the cgroup namespace differs", id="cgroup"),
        pytest.param(("unshare", "-T"), "the time namespace differs", id="time"),
        pytest.param(("unshare", "-p", "-f"), "the process namespace differs", id="processes"),
        pytest.param(("unshare", "-U"), "the user differs", id="unmapped_user"),
        pytest.param(("setpriv", "--regid", "12345", "--keep-groups"), "the group differs", id="group"),
        pytest.param(("setpriv", "--groups", "12345"), "the group list differs", id="groups"),
        pytest.param(("setpriv", "--no-new-privs"), "the bit no_new_privs differs", id="no_new_privs"),
        pytest.param(("setpriv", "--bounding-set", "-sys_time"), "the permitted capability set", id="capabilities"),
        pytest.param(("setarch", "-R"), "the personality differs", id="personality"),
        pytest.param(("prlimit", "--stack=1048576"), "the soft limit RLIMIT_STACK differs", id="stack"),
        pytest.param(("strace", "-o", "/dev/null"), "the tracer differs", id="tracer"),
        pytest.param(("env", "PYTHONWARNINGS=error"), "the list of Python's warning filters differs", id="warnings"),
        pytest.param(("env", "PYTHONOPTIMIZE=1"), "the set of Python's flags differs", id="flags"),
        pytest.param(("env", "PYTHONUTF8=0", "LC_ALL=C", "PYTHONCOERCECLOCALE=0"), "differs", id="encoding"),
    ],
)
def test_difference_that_only_exec_can_make_is_named(launcher: tuple[str, ...], reason: str) -> None:
    _skip_without(*launcher)
    with client(*launcher) as executed:
        fork = forked(executed)
    assert fork["differs"].startswith(reason) or (reason == "differs" and reason in fork["differs"])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of system calls")
@pytest.mark.parametrize(("name", "call"), _SYSTEM_CALLS.items(), ids=_SYSTEM_CALLS.keys())
def test_difference_that_a_system_call_made_is_named(name: str, call: str) -> None:
    launcher = after(f"{_LIBC}{call} == 0, 'not possible here'")
    _skip_without(*launcher)
    with client(*launcher) as executed:
        fork = forked(executed)
    assert fork["differs"].startswith(f"{name} differs")


def test_other_user_is_named() -> None:
    with client(*_user()) as executed:
        fork = forked(executed)
    assert fork["differs"].startswith("the user differs: 12345")


def test_other_root_directory_is_named(tmp_path: Path) -> None:
    """A bind mount has the device and inode of the folder it shows."""
    _skip_without("unshare", "-m")
    holder = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"mount --rbind / {tmp_path} && echo ready && cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        inside = ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt")
        with client(*inside, "chroot", str(tmp_path)) as executed:
            fork = forked(executed, *inside)
        holder.stdin.close()
    assert fork["differs"].startswith("the root directory differs")


@pytest.mark.parametrize(
    ("launcher", "reason"),
    [
        pytest.param(("prlimit", "--nofile=256:256"), "RLIMIT_NOFILE could not be set to", id="limit"),
        pytest.param(("nice", "-n", "5"), "the nice value could not be set to", id="nice"),
        pytest.param(("choom", "-n", "300", "--"), None, id="oom_score_may_be_raised"),
        pytest.param(("chrt", "-b", "0"), None, id="batch_may_be_left"),
    ],
)
def test_setting_that_needs_privileges_is_refused(launcher: tuple[str, ...], reason: str | None) -> None:
    user = _user()
    _skip_without(*launcher)
    with client(*user) as executed:
        fork = forked(executed, *launcher, *user)
    assert fork["differs"] is None
    assert (fork["refused"] or "").startswith(reason or "") and bool(fork["refused"]) == bool(reason)


def test_capturing_imports_nearly_nothing() -> None:
    """Every start pays for it, also one without a standby process."""
    script = (
        "import os, sys; before = set(sys.modules); import startup.standby.process_state as module; module.capture()"
    )
    command = [sys.executable, "-S", "-c", f"{script}; print(*sorted(set(sys.modules) - before))"]
    root = Path(__file__).parents[3]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root)
    own = ["startup", "startup.standby", "startup.standby.process_state"]
    imported = set(result.stdout.split()) - {*own, "_locale", "resource", "signal"}
    assert result.returncode == 0, result.stderr
    assert imported <= {"enum", "types", "functools", "collections", "operator", "keyword", "reprlib", "itertools",
                        "_collections", "_functools", "_operator", "_types"}  # fmt: skip


def _assert_equal(fork: dict[str, dict[str, str]], executed: dict[str, dict[str, str]]) -> None:
    assert (fork["differs"], fork["refused"]) == (None, None)
    assert fork["shown"] == executed["shown"]
    assert fork["facts"] == executed["facts"]
    own_id = "the I/O priority"
    assert fork["settings"] | {own_id: ""} == executed["settings"] | {own_id: ""}


def _skip_without(*launcher: str) -> None:
    try:
        works = subprocess.run([*launcher, "true"], capture_output=True, timeout=60).returncode == 0
    except FileNotFoundError:
        works = False
    if not works:
        pytest.skip(f"{launcher[0]} does not work here")


def _user() -> tuple[str, ...]:
    user = as_user(12345, 12345, Path(sys.executable))
    if user is None:
        pytest.skip("needs root")
    return user


def test_signals_of_the_c_library_do_not_count(tmp_path: Path) -> None:
    """GNU make starts its commands with signals 32 and 33 ignored; `make serve` should be warm."""
    script = tmp_path / "ignored.py"
    script.write_text(
        "from startup.standby.process_state import capture\nprint(capture().settings['the set of ignored signals'])\n"
    )
    (tmp_path / "Makefile").write_text(f"all:\n\t@{sys.executable} {script}\n")
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        ["make", "-s"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout, 16) >> 31 & 0b11 == 0


def test_the_first_session_of_a_machine_equals_one_with_the_default_nice_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any setsid, as under some init processes, the kernel shows an empty line."""
    facts = process_state._facts(process_state._status())
    shown = process_state._text
    monkeypatch.setattr(process_state, "_text", lambda name, *pid: "" if name == "autogroup" else shown(name, *pid))
    assert process_state.why_not_equal(facts) is None
