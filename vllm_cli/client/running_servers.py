"""Finds the servers that run on this machine: by what /proc tells of them, so that nothing can be out of date."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from startup.timeline.process_age import process_age_s
from vllm_cli.client.readiness import ask_readiness
from vllm_cli.client.server_address import ServerAddress
from vllm_cli.client.server_sockets import address_of, find_socket, has_own_network
from vllm_cli.errors import InputError
from vllm_cli.flags.arguments import Arguments
from vllm_cli.flags.config_file import read_config_file

_ANSWER_TIMEOUT_S: Final = 2.0
_PRELOADS: Final = {"startup.engine.preload": "embedded", "startup.vllm.preload": "vllm"}
_STATES: Final = {"ready": "ready", "starting": "not ready", "absent": "silent", "failed": "dead"}


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """One server: `vllm-cli serve` and everything below it."""

    pid: int
    port: int | None
    """Where it listens; None on a UNIX socket, and before it listens."""
    address: str | None
    model: str
    engine: str
    """`embedded` or `vllm`; `auto` where it was left to the server and cannot be told from outside."""
    state: str
    """`ready`, what it says it is at, `silent`, or `elsewhere`: where this process's network does not reach."""
    uptime_s: float
    memory_bytes: int
    """Of all its processes; pages that several share are divided among them (PSS)."""
    pids: tuple[int, ...]
    """The server's own first."""

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return vars(self) | {"uptime_s": round(self.uptime_s, 1), "pids": list(self.pids)}


def find_servers(*, looks_closer: bool = True) -> list[RunningServer]:
    """All servers that this user may see, oldest first.

    Args:
        looks_closer: also find out state and memory, which takes some milliseconds for each.
    """
    import psutil

    mains = {p.pid: p for p in psutil.process_iter() if _serve_words(p) is not None}
    found = []
    for process in mains.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            if not any(parent.pid in mains for parent in process.parents()):
                found.append((process.create_time(), _describe(process, looks_closer)))
    return [server for _, server in sorted(found, key=lambda pair: pair[0])]


def _serve_words(process: Any) -> list[str] | None:
    """The words behind `serve` where the process is a server; None of any other process."""
    import psutil

    try:
        words = process.cmdline()
    except (psutil.Error, OSError):
        return None
    if not words or not _program(process, words).name.startswith("python"):
        return None
    for place, word in enumerate(words[1:-1], start=1):
        is_ours = Path(word).name == "vllm-cli" or (word == "vllm_cli" and words[place - 1] == "-m")
        if is_ours:
            return words[place + 2 :] if words[place + 1] == "serve" else None
        if word == "-c" or not (word.startswith("-") or words[place - 1] in ("-X", "-W")):
            return None
    return None


def _program(process: Any, words: list[str]) -> Path:
    """What it runs; of other users' processes only they themselves tell it."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        return Path(process.exe() or words[0])
    return Path(words[0])


def _describe(process: Any, looks_closer: bool) -> RunningServer:
    arguments = _parse(_serve_words(process) or [])
    family = [process, *process.children(recursive=True)]
    is_elsewhere = has_own_network(process)
    listening = None if is_elsewhere else find_socket(family, arguments)
    is_tls = arguments.last_value("--ssl-certfile") is not None
    place = address_of(listening, is_tls=is_tls) if listening else None
    return RunningServer(
        pid=process.pid,
        port=listening[1] if isinstance(listening, tuple) else None,
        address=str(place) if place else None,
        model=_model(arguments),
        engine=_engine(family, arguments),
        state=("elsewhere" if is_elsewhere else _ask_state(place)) if looks_closer else "",
        uptime_s=process_age_s(process.pid) or 0.0,
        memory_bytes=sum(map(_memory_bytes, family)) if looks_closer else 0,
        pids=tuple(p.pid for p in family),
    )


def _parse(words: list[str]) -> Arguments:
    """The server has accepted its command line, which another version of it may have done by other rules."""
    try:
        given = Arguments.parse(words)
        path = given.last_value("--config")
        in_file = read_config_file(Path(path)) if path else Arguments()
    except InputError:
        return Arguments()
    in_file.flags.update(given.flags)
    in_file.positionals = given.positionals or in_file.positionals
    return in_file


def _model(arguments: Arguments) -> str:
    from startup.model.default_model import DEFAULT_MODEL_ID

    served = arguments.flags.get("--served-model-name")
    named = served.values[0] if served else None
    model = arguments.positionals[0] if arguments.positionals else arguments.last_value("--model")
    return named or model or DEFAULT_MODEL_ID


def _engine(family: list[Any], arguments: Arguments) -> str:
    """As named, or as the forkserver's command line tells what it was started for."""
    import psutil

    named = arguments.last_value("--engine") or "auto"
    if named != "auto":
        return named
    for process in family[1:]:
        with contextlib.suppress(psutil.Error, OSError):
            words = " ".join(process.cmdline())
            for preload, engine in _PRELOADS.items():
                if preload in words:
                    return engine
    return named


def _ask_state(place: ServerAddress | None) -> str:
    if place is None:
        return "not listening"
    look = ask_readiness(place, "/health", timeout_s=_ANSWER_TIMEOUT_S)
    return look.status or _STATES[look.state]


def _memory_bytes(process: Any) -> int:
    """The kernel tells it of one's own processes; root's are left out for others."""
    import psutil

    try:
        return int(process.memory_full_info().pss)
    except (psutil.Error, OSError):
        return 0
