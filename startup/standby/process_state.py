"""What `exec` keeps of a process: read by the client of a standby process, taken over by its server.

A server forked from a template process must equal the process that `exec` would have made of the client.
`facts` cannot be changed by the process itself: if one differs, the server starts cold. `settings` are
applied (`state_change`) and then read again. Each entry's name is the noun of its reason.

The client imports this module at every start: only `os`, `sys`, `signal`, `resource` and C modules.

Not covered, because neither /proc nor Python show it: the programs of seccomp filters (their number is
compared), Landlock rules, securebits, the session keyring. Python's hash seed differs per process anyway.
"""

import _locale
import os
import resource
import signal
import sys

_STATUS_FACTS = {
    "Uid": "the user",
    "Gid": "the group",
    "Groups": "the group list",
    "CapInh": "the inheritable capability set",
    "CapPrm": "the permitted capability set",
    "CapEff": "the effective capability set",
    "CapBnd": "the capability bounding set",
    "CapAmb": "the ambient capability set",
    "NoNewPrivs": "the bit no_new_privs",
    "Seccomp": "the seccomp mode",
    "Seccomp_filters": "the number of seccomp filters",
    "Speculation_Store_Bypass": "the mitigation of speculative store bypass",
    "SpeculationIndirectBranch": "the mitigation of indirect branch speculation",
    "x86_Thread_features": "the set of thread features",
    "THP_enabled": "the use of transparent huge pages",
    "TracerPid": "the tracer",
}
"""Lines of /proc/PID/status."""

_NAMESPACES = {
    "net": "network",
    "mnt": "mount",
    "pid": "process",
    "pid_for_children": "children's process",
    "user": "user",
    "ipc": "IPC",
    "uts": "host name",
    "cgroup": "cgroup",
    "time": "time",
    "time_for_children": "children's time",
}

LIMITS = {
    name: getattr(resource, name) for name in vars(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
}

_LIMITS_AT_EXEC = ("RLIMIT_STACK", "RLIMIT_AS", "RLIMIT_DATA")
"""Soft limits that cannot take effect later: the C library reads the first one at exec, the others count
memory of modules that only the template has imported."""

IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""Python ignores these at its start, whatever it was started with."""

STREAMS = ("stdin", "stdout", "stderr")

_OF_THE_C_LIBRARY = (32, 33)
"""Used by its threads, and in no reach of a program; GNU make starts its commands with these ignored."""


class State:
    """A process's state; values are opaque texts, equal if and only if the states are."""

    __slots__ = ("facts", "settings")

    def __init__(self, facts: dict[str, str], settings: dict[str, str]) -> None:
        self.facts = facts
        """What the process cannot change about itself."""
        self.settings = settings
        """What it can change, perhaps only with privileges."""


def capture() -> State:
    """This process's state. Its client calls it before it changes any of it, signal handlers excepted."""
    status = _status()
    return State(_facts(status), _settings(status))


def why_not_equal(facts: dict[str, str]) -> str | None:
    """The first fact that differs from this process's own, as a reason for a cold start."""
    own = _facts(_status())
    for name in {**own, **facts}:
        here, there = own.get(name, ""), facts.get(name, "")
        if here != there:
            return f"{name} differs: {_short(there)} instead of the standby's {_short(here)}"
    return None


def shown_facts(pid: int) -> dict[str, str]:
    """The facts of another process that the kernel shows: credentials, sandbox, namespaces, root, label."""
    return _shown_facts(str(pid), _status(str(pid)))


def current_settings() -> dict[str, str]:
    """This process's settings."""
    return _settings(_status())


def _shown_facts(pid: str, status: dict[str, str]) -> dict[str, str]:
    facts = {name: status.get(line, "") for line, name in _STATUS_FACTS.items()}
    for link, name in _NAMESPACES.items():
        facts[f"the {name} namespace"] = _link(f"/proc/{pid}/ns/{link}")
    facts["the root directory"] = _root_directory(pid)
    facts["the security label"] = _text("attr/current", pid) + _text("attr/apparmor/current", pid)
    return facts


def _facts(status: dict[str, str]) -> dict[str, str]:
    facts = _shown_facts("self", status)
    for limit in _LIMITS_AT_EXEC:
        facts[f"the soft limit {limit}"] = str(resource.getrlimit(LIMITS[limit])[0])
    facts["the personality"] = _text("personality")
    facts["the memory policy"] = _second_word(_text("numa_maps"))
    facts["the nice value of the session"] = _text("autogroup").rpartition(" ")[2] or "0"  # empty: the first session
    scheduling = _text("sched")
    facts["the utilization clamp"] = " ".join(_line(name, scheduling) for name in ("uclamp.min", "uclamp.max"))
    facts["same-page merging"] = _line("ksm_merge_any", _text("ksm_stat"))
    facts["the interpreter"] = f"{sys.executable} {sys.version}"
    facts["the launcher's folder"] = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    facts["the prefix"] = f"{sys.prefix} {sys.base_prefix} {sys.exec_prefix}"
    facts["the set of Python's flags"] = repr(tuple(sys.flags))
    facts["the set of Python's -X options"] = repr(sorted(sys._xoptions.items()))
    facts["the list of Python's warning filters"] = repr(sys.warnoptions)
    facts["the file system encoding"] = f"{sys.getfilesystemencoding()} {sys.getfilesystemencodeerrors()}"
    facts["the use of a Python debugger or profiler"] = str(bool(sys.gettrace() or sys.getprofile()))
    return facts


def _settings(status: dict[str, str]) -> dict[str, str]:
    """In the order in which they are applied: what needs open files or privileges comes before the limits."""
    return {
        "the cgroup": _text("cgroup"),
        "the login user": _text("loginuid"),
        "the OOM score adjustment": _text("oom_score_adj"),
        "the CPU affinity": status.get("Cpus_allowed_list", ""),
        "the list of allowed memory nodes": status.get("Mems_allowed_list", ""),
        "the scheduling policy": f"{os.sched_getscheduler(0)} {os.sched_getparam(0).sched_priority}",
        "the nice value": str(os.getpriority(os.PRIO_PROCESS, 0)),
        "the I/O priority": str(os.getpid()),
        "the timer slack": _text("timerslack_ns"),
        "the core dump filter": _text("coredump_filter"),
        "the command name": _text("comm"),
        "the umask": status.get("Umask", ""),
        "the character type locale": _locale.setlocale(_locale.LC_CTYPE, None),
        **{f"the text layer of {name}": _text_layer(name) for name in STREAMS},
        "the set of ignored signals": _without_own(status.get("SigIgn", "0")),
        **{name: "{} {}".format(*resource.getrlimit(number)) for name, number in LIMITS.items()},
        "the set of blocked signals": status.get("SigBlk", "0"),
    }


def _status(pid: str = "self") -> dict[str, str]:
    lines = (line.partition(":") for line in _text("status", pid).split("\n"))
    return {name: value.strip() for name, _, value in lines}


def _text(name: str, pid: str = "self") -> str:
    """The first page of a file of /proc/PID; empty if the kernel does not have it or does not show it."""
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 65536).decode(errors="replace").strip("\0\n ")
    except OSError:
        return ""
    finally:
        os.close(fd)


def _text_layer(name: str) -> str:
    """Of a standard stream: encoding and buffering, which Python derives from variables and the terminal."""
    stream = getattr(sys, name)
    if stream is None:
        return "closed"
    return f"{stream.encoding} {stream.errors} {stream.line_buffering:d} {stream.write_through:d}"


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115  # pathlib is slow to import
    except OSError:
        return ""


def _root_directory(pid: str) -> str:
    """Device, inode and mount: a bind mount of the same folder is another root."""
    try:
        fd = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        root = os.fstat(fd)
        return f"{root.st_dev} {root.st_ino} {_line('mnt_id', _text(f'fdinfo/{fd}'))}"
    finally:
        os.close(fd)


def _line(name: str, text: str) -> str:
    fields = (line.partition(":") for line in text.split("\n") if line.startswith(name))
    return next((value.strip() for _, _, value in fields), "")


def _second_word(text: str) -> str:
    """Of a line of numa_maps: the policy of its memory, without an own one the process's."""
    return "".join(text.split(" ", 2)[1:2])


def _without_own(ignored: str) -> str:
    mask = int(ignored, 16)
    for number in (*IGNORED_BY_PYTHON, *_OF_THE_C_LIBRARY):
        mask &= ~(1 << (number - 1))
    return f"{mask:016x}"


def _short(value: str) -> str:
    text = " ".join(value.split()) or "nothing"
    return text if len(text) <= 80 else f"{text[:77]}..."
