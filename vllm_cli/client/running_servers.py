"""Finds this user's running servers and standbys on this machine, by the records that they keep."""

import contextlib
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, TypeAlias

from base.json_depth import read_json
from base.machine.processes import child_pids, descendants, process_age_s, pss_bytes
from base.status_page.page import DATA_PATH
from startup.arguments.errors import InputError
from startup.standby.status import STATUS, NoStandbyError, ask
from startup.storage.run_record import ROUTER, STANDBY, RunRecord, read_run_records
from vllm_cli.client.server import ServerClient, amount
from vllm_cli.client.server_address import ServerAddress, parse_url
from vllm_cli.client.waiting import poll_readiness

_ANSWER_TIMEOUT_S: Final = 2.0
_MAX_BODY_BYTES: Final = 4 << 20
_Starts: TypeAlias = Mapping[int | None, Mapping[str, Any] | None]
"""Id of a server's process -> the fields of its start, as in `RunningServer.start`."""
_STATES: Final = {"ready": "ready", "starting": "not ready", "absent": "silent", "failed": "dead"}


@dataclass(frozen=True, kw_only=True)
class RouterModel:
    """One model of a router."""

    model: str
    engine: str
    state: str
    """`stopped`, `starting`, `ready`, `draining` or `failed`."""
    since_s: float | None
    """Seconds since the model entered this state."""
    memory_bytes: int | None
    """PSS of the model's processes. None if the model does not run, or was not measured yet."""
    pid: int | None
    reason: str | None
    """Why the model's last start failed. None if the start did not fail."""
    aliases: tuple[str, ...] = ()
    phase: str | None = None
    """The phase of the start. None if the model does not start."""
    num_running: int | None = None
    start: Mapping[str, Any] | None = None
    """The start of the model's process, with the fields of `RunningServer.start`."""

    def to_dict(self) -> dict[str, Any]:
        """The output of `ps --json`."""
        return vars(self) | {"since_s": None if self.since_s is None else round(self.since_s, 1)}


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """One server or standby: the process that the user started, and all processes that belong to it.

    A router (`serve` with several models) counts as one server, together with its models' processes. A
    standby has its template processes, without the servers that were forked from them. It has no address,
    model, engine and start.
    """

    kind: str = "server"
    """`server` or `standby`."""
    pid: int
    port: int | None = None
    """None for a UNIX socket, and for a process that does not listen (`--headless`)."""
    address: str | None = None
    model: str | None = None
    engine: str | None = None
    """`embedded`, `vllm` or `router`."""
    state: str
    """The `status` that the server reports, else `ready`, `not ready`, `silent`, `dead` or `not listening`.

    A server whose next request starts its model (`--idle-stop`) reports `stopped`. The state of a standby is
    `importing`, `ready` or `failed`, as reported, and `running` for a standby of another environment.
    """
    uptime_s: float
    memory_bytes: int
    """PSS of all the server's processes. PSS divides a shared page among the processes that share it."""
    pids: tuple[int, ...]
    """All processes, beginning with the process that the user started."""

    forked_pid: int | None = None
    """The server's process, if a standby has forked it. None for a router, and after a cold start."""

    log: str | None = None
    """The file with the server's output, as after `2> FILE`. None if it has no file."""
    start: Mapping[str, Any] | None = None
    """The fields of `base.lifecycle.StartInfo`, with `ready_s` and `phases` once the server was ready."""
    models: tuple[RouterModel, ...] | None = None
    """The models of a router. None for other servers, and for a router that does not list them."""
    owner_pid: int | None = None
    """The `vllm-cli serve` (`--idle-stop`, or with several models) to which the standby belongs."""

    @property
    def entry_pids(self) -> tuple[int, ...]:
        """The process ids by which a user may name this server."""
        return (self.pid,) if self.forked_pid is None else (self.pid, self.forked_pid)

    def to_dict(self) -> dict[str, Any]:
        """The output of `ps --json`. A standby has a server's fields, and null where it has no value."""
        entry = vars(self) | {"uptime_s": round(self.uptime_s, 1), "pids": list(self.pids)}
        models, owner_pid = entry.pop("models"), entry.pop("owner_pid")
        if self.kind == STANDBY:
            return entry | {"owner_pid": owner_pid}
        return entry if models is None else entry | {"models": [model.to_dict() for model in models]}


def find_servers(*, with_state: bool = True) -> list[RunningServer]:
    """All servers, oldest first. `with_state` adds state and memory, which takes milliseconds per server."""
    every = read_run_records()
    records = [record for record in every if record.engine != STANDBY]
    standbys = {pid for record in every if record.engine == STANDBY for pid in _pids_of_standby(record)}
    members = {record.pid: _members(record, records, standbys) for record in records}
    inner = {pid for first, *others in members.values() for pid in others if pid != first}
    outer = [record for record in records if members[record.pid][0] not in inner]
    starts = {pid: record.start for record in records for pid in (record.front_pid, record.pid)}
    found = [_describe(record, members[record.pid], starts, with_state) for record in outer]
    return sorted(found, key=lambda server: -server.uptime_s)


def find_standbys() -> list[RunningServer]:
    """All standbys, oldest first."""
    found = [_describe_standby(record) for record in read_run_records() if record.engine == STANDBY]
    return sorted(found, key=lambda standby: -standby.uptime_s)


def _members(record: RunRecord, records: list[RunRecord], standbys: set[int]) -> tuple[int, ...]:
    """The process that the user started, then all other processes of the server. No standby is among them."""
    found = dict.fromkeys((record.front_pid or record.pid, record.pid, *descendants(record.pid)))
    for other in records:
        if other.front_pid in found:  # forked for a child of this server
            found |= dict.fromkeys((other.pid, *descendants(other.pid)))
    return tuple(pid for pid in found if pid not in standbys)


def _describe(record: RunRecord, pids: tuple[int, ...], starts: _Starts, with_state: bool) -> RunningServer:
    address = address_of(record)
    has_models = record.engine == ROUTER and with_state
    models = _read_models(address) if has_models and address is not None else None
    if models is not None:
        models = tuple(replace(model, start=starts.get(model.pid) if model.pid else None) for model in models)
    return RunningServer(
        pid=pids[0],
        port=address.port if address is not None and address.uds is None else None,
        address=str(address) if address is not None else None,
        model=(record.model or "") if models is None else describe(models),
        engine=record.engine,
        state=_poll_state(address) if with_state else "",
        uptime_s=process_age_s(pids[0]) or 0.0,
        memory_bytes=sum(map(pss_bytes, pids)) if with_state else 0,
        pids=pids,
        forked_pid=record.pid if record.front_pid is not None else None,
        log=_log_of(pids[0]),
        start=record.start,
        models=models,
    )


def _log_of(pid: int) -> str | None:
    """The file to which a process writes standard error. None if this is no regular file, or was removed."""
    with contextlib.suppress(OSError):
        path = Path(f"/proc/{pid}/fd/2").readlink()
        return str(path) if path.is_file() else None
    return None


def address_of(record: RunRecord) -> ServerAddress | None:
    """The address at which a server listens. None if it does not listen, or if its record is not valid."""
    if record.address is None:
        return None
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the process is known, and nothing secret is sent
    with contextlib.suppress(InputError):
        return parse_url(record.address, context)
    return None


def _read_models(address: ServerAddress) -> tuple[RouterModel, ...] | None:
    """The models of a router, in its file's order. None if it sends no list, for example without a key."""
    try:
        answer = ServerClient(address).request("GET", DATA_PATH, timeout_s=_ANSWER_TIMEOUT_S, max_bytes=_MAX_BODY_BYTES)
        data = read_json(answer.content) if answer.status == 200 else None
    except (OSError, HTTPException, ValueError):
        return None
    return parse_models(data)


def describe(models: Iterable[RouterModel]) -> str:
    """A summary such as `3 models, 1 ready`."""
    states = [model.state for model in models]
    return f"{len(states)} model{'' if len(states) == 1 else 's'}, {states.count('ready')} ready"


def parse_models(data: Any) -> tuple[RouterModel, ...] | None:
    """The models in the data of a status page. None if the server has only one model."""
    found = data.get("models") if isinstance(data, Mapping) else None
    if not isinstance(found, list):
        return None
    return tuple(_parse_model(each) for each in found if isinstance(each, Mapping))


def _parse_model(data: Mapping[str, Any]) -> RouterModel:
    aliases, progress = data.get("aliases"), data.get("progress")
    return RouterModel(
        model=_text(data.get("id")) or "?",
        engine=_text(data.get("engine")) or "?",
        state=_text(data.get("status")) or "?",
        since_s=amount(data.get("for_s")),
        memory_bytes=_count(data.get("memory_bytes")),
        pid=_count(data.get("pid")),
        reason=_text(data.get("reason")),
        aliases=tuple(filter(_text, aliases)) if isinstance(aliases, list) else (),
        phase=_text(progress.get("phase")) if isinstance(progress, Mapping) else None,
        num_running=_count(data.get("num_running")),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    number = amount(value)
    return None if number is None else int(number)


def _poll_state(address: ServerAddress | None) -> str:
    if address is None:
        return "not listening"
    readiness = poll_readiness(address, "/health", timeout_s=_ANSWER_TIMEOUT_S)
    return readiness.status or _STATES[readiness.state]


def _describe_standby(record: RunRecord) -> RunningServer:
    pids = _pids_of_standby(record)
    return RunningServer(
        kind=STANDBY,
        pid=record.pid,
        state=_state_of_standby(record.pid),
        uptime_s=process_age_s(record.pid) or 0.0,
        memory_bytes=sum(map(pss_bytes, pids)),
        pids=pids,
        log=_log_of(record.pid),
        owner_pid=record.owner_pid,
    )


def _pids_of_standby(record: RunRecord) -> tuple[int, ...]:
    """The standby and its template processes, without the servers that template processes have forked."""
    return (record.pid, *child_pids(record.pid))


def _state_of_standby(pid: int) -> str:
    with contextlib.suppress(NoStandbyError):
        status = ask(STATUS)
        if status.pid == pid:
            states = {template.state for template in status.templates}
            return next((state for state in ("importing", "ready") if state in states), "failed")
    return "running"
