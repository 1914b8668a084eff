"""Finds the standbys that run on this machine, with their template processes."""

import contextlib
from dataclasses import dataclass
from typing import Any, Final

from server.machine.processes import process_age_s, pss_bytes
from startup.standby.status import STATUS, NoStandbyError, ask
from vllm_cli.client.server_processes import TEMPLATE_COMMAND, command_words

_OTHER_COMMANDS: Final = frozenset({"status", "stop", "--help", "-h", "--detach"})
"""Words of `vllm-cli standby` with which it does not keep running."""


@dataclass(frozen=True, kw_only=True)
class RunningStandby:
    """`vllm-cli standby` with its template processes, without the servers that were forked from them."""

    pid: int
    state: str
    """`importing`, `ready` or `failed`, as it reports; `running` for those of other environments or users."""
    uptime_s: float
    memory_bytes: int
    """PSS: pages that it shares with servers count in part."""
    pids: tuple[int, ...]
    """The process that was started first."""
    owner_pid: int | None = None
    """The `vllm-cli serve` (`--idle-stop`, or with several models) that alone uses it."""

    def to_dict(self) -> dict[str, Any]:
        """The output of `ps --json`: the fields of a server, null where a standby has none."""
        return {
            "kind": "standby",
            "pid": self.pid,
            **dict.fromkeys(("port", "address", "model", "engine")),
            "state": self.state,
            "uptime_s": round(self.uptime_s, 1),
            "memory_bytes": self.memory_bytes,
            "pids": list(self.pids),
            "forked_pid": None,
            "owner_pid": self.owner_pid,
        }


def find_standbys() -> list[RunningStandby]:
    """All standbys that this user may see, oldest first."""
    import psutil

    mains = {process.pid: process for process in psutil.process_iter() if _is_standby(process)}
    found = []
    for process in mains.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.ppid() not in mains:
                found.append((process.create_time(), _describe(process)))
    return [standby for _, standby in sorted(found, key=lambda pair: pair[0])]


def _is_standby(process: Any) -> bool:
    words = command_words(process, "standby")
    return words is not None and not _OTHER_COMMANDS & set(words)


def _describe(process: Any) -> RunningStandby:
    """As process 1 of a container it has a child that is the standby, and acts as its init."""
    standbys = [process, *filter(_is_standby, process.children())]
    children = [child for standby in standbys for child in standby.children()]
    templates = [child for child in children if command_words(child, TEMPLATE_COMMAND) is not None]
    pids = tuple(member.pid for member in (*standbys, *templates))
    return RunningStandby(
        pid=process.pid,
        state=_state(pids),
        uptime_s=process_age_s(process.pid) or 0.0,
        memory_bytes=sum(map(pss_bytes, pids)),
        pids=pids,
        owner_pid=_owner(process),
    )


def _owner(process: Any) -> int | None:
    parent = process.parent()
    return parent.pid if parent is not None and command_words(parent, "serve") is not None else None


def _state(pids: tuple[int, ...]) -> str:
    with contextlib.suppress(NoStandbyError):
        status = ask(STATUS)
        if status.pid in pids:
            states = {template.state for template in status.templates}
            return next((state for state in ("importing", "ready") if state in states), "failed")
    return "running"
