"""Recognises processes of this program, and which server a warm start has forked for which process."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final


def command_words(process: Any, command: str) -> list[str] | None:
    """The words after the command if the process is `vllm-cli COMMAND ...`, else None."""
    import psutil

    try:
        words = process.cmdline()
    except (psutil.Error, OSError):
        return None
    if not words or not _program(process, words).name.startswith("python"):
        return None
    for index, word in enumerate(words[1:-1], start=1):
        is_ours = Path(word).name == "vllm-cli" or (word == "vllm_cli" and words[index - 1] == "-m")
        if is_ours:
            return words[index + 2 :] if words[index + 1] == command else None
        if word == "-c" or not (word.startswith("-") or words[index - 1] in ("-X", "-W")):
            return None
    return None


def _program(process: Any, words: list[str]) -> Path:
    """The executable; for other users' processes, the first word of their command line."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        return Path(process.exe() or words[0])
    return Path(words[0])


TEMPLATE_COMMAND: Final = "standby-template"
"""The first word of a template process, which is the parent of the servers that it forks."""


def find_forked_servers(mains: Iterable[Any]) -> dict[int, int]:
    """The process ids of forked servers, each with that of the process which the user started.

    That process holds a pidfd of its server and belongs to the same user. Where descriptors are not visible,
    as those of other users: the last one with the server's command line that was started before it.

    Args:
        mains: the processes of `vllm-cli serve`.
    """
    processes = {process.pid: process for process in mains}
    forked: dict[int, int] = {}
    for process in processes.values():
        held = (pid for pid in _pidfds(process.pid) if pid in processes)
        forked |= {pid: process.pid for pid in held if _user(processes[pid]) == _user(process) is not None}
    for process in processes.values():
        if process.pid not in forked and _has_template_as_parent(process):
            front_pid = _likely_front(process, [p for p in processes.values() if p.pid not in forked])
            if front_pid is not None:
                forked[process.pid] = front_pid
    return forked


def _pidfds(pid: int) -> set[int]:
    """The processes to which a process holds pidfds (proc(5), fdinfo); empty if it may not be read."""
    found = set()
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{pid}/fdinfo").iterdir():
            with contextlib.suppress(OSError, ValueError):
                lines = path.read_text().splitlines()
                found |= {int(line.partition(":")[2]) for line in lines if line.startswith("Pid:")}
    return found - {pid}


def _user(process: Any) -> int | None:
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        return int(process.uids().real)
    return None


def _has_template_as_parent(process: Any) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        parent = process.parent()
        return parent is not None and command_words(parent, TEMPLATE_COMMAND) is not None
    return False


def _likely_front(server: Any, candidates: list[Any]) -> int | None:
    import psutil

    found = []
    for candidate in candidates:
        with contextlib.suppress(psutil.Error, OSError):
            begin = candidate.create_time()
            is_alike = candidate.cmdline() == server.cmdline() and _user(candidate) == _user(server) is not None
            if candidate.pid != server.pid and is_alike and begin <= server.create_time():
                found.append((begin, candidate.pid))
    return max(found)[1] if found else None
