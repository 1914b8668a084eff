"""What a router says about its models: the data of its status page, read without trust in it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final

from server.status_page.page import DATA_PATH
from vllm_cli.client.server import Server
from vllm_cli.client.server_address import ServerAddress

_MAX_BODY_BYTES: Final = 4 << 20
_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, kw_only=True)
class RouterModel:
    """One model of a router."""

    model: str
    engine: str
    state: str
    """`stopped`, `starting`, `ready`, `draining` or `failed`."""
    since_s: float | None
    """How long it has been in this state."""
    memory_bytes: int | None
    """PSS of its processes; None if it does not run, or is not measured yet."""
    pid: int | None
    reason: str | None
    """Why its last start failed."""

    def to_dict(self) -> dict[str, Any]:
        """The output of `ps --json`."""
        return vars(self) | {"since_s": None if self.since_s is None else round(self.since_s, 1)}


def read_models(address: ServerAddress) -> tuple[RouterModel, ...] | None:
    """The models in the order of the router's file; None if it does not tell them, as without its key."""
    try:
        answer = Server(address).request("GET", DATA_PATH, timeout_s=_TIMEOUT_S, max_bytes=_MAX_BODY_BYTES)
        data = json.loads(answer.content) if answer.status == 200 else None
    except (OSError, HTTPException, ValueError, RecursionError):
        return None
    return parse_models(data)


def describe(models: Iterable[RouterModel]) -> str:
    """`3 models, 1 ready`."""
    states = [model.state for model in models]
    return f"{len(states)} model{'' if len(states) == 1 else 's'}, {states.count('ready')} ready"


def parse_models(data: Any) -> tuple[RouterModel, ...] | None:
    """The models in the data of a status page; None for a server with one model."""
    found = data.get("models") if isinstance(data, Mapping) else None
    if not isinstance(found, list):
        return None
    return tuple(_parse_model(each) for each in found if isinstance(each, Mapping))


def _parse_model(data: Mapping[str, Any]) -> RouterModel:
    return RouterModel(
        model=_text(data.get("id")) or "?",
        engine=_text(data.get("engine")) or "?",
        state=_text(data.get("status")) or "?",
        since_s=_number(data.get("for_s")),
        memory_bytes=_count(data.get("memory_bytes")),
        pid=_count(data.get("pid")),
        reason=_text(data.get("reason")),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < 1e12 else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
