"""The router's reports about its models: lists, states, metrics, and the data of the status page."""

import asyncio
import shlex
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, get_args
from weakref import ref

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from base.json_depth import read_json
from envs.redaction import hide_in_arguments
from router.child.child import Child
from router.metrics import counter
from router.model_entry import ModelEntry
from router.model_pool import ModelPool, ModelStatus
from router.scheduling.terms import State
from startup.settings.serve_arguments import is_flag_like

_SLEEPING: Final = ("falling asleep", "asleep", "waking")
"""A model in one of these states has started already, so probes report it as ready."""


class Exposition(NamedTuple):
    """The text of the metrics, and its content type."""

    body: bytes
    content_type: str


class _KnownLength(NamedTuple):
    """The `max_model_len` that a process of an entry has reported."""

    entry: ModelEntry
    child: ref[Child]
    length: int | None


class PoolListing:
    """Describes the models of a pool. Used on the event loop."""

    def __init__(self, pool: ModelPool, *, version: str, needs_key: bool) -> None:
        self._pool = pool
        self._version = version
        self._needs_key = needs_key
        self._created = int(time.time())
        self._lengths: dict[str, _KnownLength] = {}
        """Model's name -> the `max_model_len` of the model's last process."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._registry.register(pool.metrics)

    async def learn_lengths(self, ask: Callable[[Child, str], Awaitable[bytes | None]]) -> None:
        """Requests each running model's `max_model_len` from its server, unless it is known."""
        unknown: list[tuple[ModelEntry, Child]] = []
        for name, entry in self._pool.entries.items():
            child = self._pool.child_of(name)
            if child is not None and not self._knows(entry, child):
                unknown.append((entry, child))
        answers = await asyncio.gather(*(ask(child, "/v1/models") for _, child in unknown))
        for (entry, child), answer in zip(unknown, answers, strict=True):
            if answer is not None:
                self._lengths[entry.name] = _KnownLength(entry, ref(child), _read_length(answer))

    def models(self) -> dict[str, Any]:
        """The body of GET /v1/models. It contains all models in all states, except hidden models."""
        listed = [status for status in self._pool.view() if not status.entry.unlisted]
        cards = [card for status in listed for card in self._cards(status)]
        return {"object": "list", "data": cards}

    def model(self, entry: ModelEntry, requested: str) -> dict[str, Any]:
        """The body of GET /v1/models/{id}. The id may be any name of the model."""
        cards = self._cards(self.status_of(entry.name))
        return next((card for card in cards if card["id"] == requested), cards[0])

    def running(self) -> dict[str, Any]:
        """The body of GET /running, in llama-swap's form."""
        running = [status for status in self._pool.view() if status.state in _RUNNING]
        process_of = self._pool.process_of
        return {"running": [_llama_swap(status, process_of(status.entry.name)) for status in running]}

    def readiness(self, name: str, *, has_key: bool) -> dict[str, Any] | None:
        """Why the model is not ready, and the progress of its start. None if the model is ready or sleeps.

        Without `has_key`, the reason of a failure is left out: it may quote output of the process.
        """
        status = self.status_of(name)
        child = self._pool.process_of(name)
        fault = child.fault if child is not None else ""
        if status.state in ("ready", *_SLEEPING) and not fault:
            return None
        reason = status.reason if has_key else ""
        message = fault or reason or f"The model is {status.state}"
        body: dict[str, Any] = {
            "error": {"code": 503, "message": message, "type": "unavailable_error"},
            "status": "silent" if fault else status.state,
        }
        if (progress := status.progress) is not None:
            body |= {"phase": progress.phase, "progress": progress.fraction, "eta_s": progress.remaining_s}
        return body

    def status(self, *, has_key: bool) -> dict[str, Any]:
        """The data of the status page. Without `has_key`, no reasons of failures, and no unlisted models."""
        now = time.time()
        shown = [status for status in self._pool.view() if has_key or not status.entry.unlisted]
        names = {status.entry.name for status in shown}
        return {
            "status": "draining" if self._pool.is_draining else "ready",
            "version": self._version,
            "time_s": now,
            "router": {**self._pool.router_status(), "needs_key": self._needs_key},
            "models": [_page_row(status, now, has_key=has_key) for status in shown],
            "starts": [start for start in self._pool.starts if has_key or start["model"] in names],
        }

    def metrics(self, accept: str | None) -> Exposition:
        encode, content_type = choose_encoder(accept or "")
        return Exposition(encode(self._registry), content_type)

    def status_of(self, name: str) -> ModelStatus:
        return next(status for status in self._pool.view() if status.entry.name == name)

    def _knows(self, entry: ModelEntry, child: Child | None) -> bool:
        """Whether the length is that of the entry's present process, or without one, of its last process."""
        known = self._lengths.get(entry.name)
        if known is None or known.entry != entry:
            return False
        return child is None or known.child() is child

    def _cards(self, status: ModelStatus) -> list[dict[str, Any]]:
        """The members of /v1/models for this model and its adapters."""
        entry, child = status.entry, self._pool.child_of(status.entry.name)
        names_weights = bool(entry.arguments) and not is_flag_like(entry.arguments[0])
        root = entry.arguments[0] if names_weights else entry.name
        card = {
            "id": entry.name,
            "object": "model",
            "created": self._created,
            "owned_by": "vllm-cli",
            "root": root,
            "parent": None,
            "max_model_len": self._lengths[entry.name].length if self._knows(entry, child) else None,
            "status": status.state,
            "since": round(status.since_unix_s, 3),
            "size_bytes": status.size_bytes,
            "memory_bytes": status.memory_bytes,
            "aliases": list(entry.aliases),
            **entry.card,
        }
        if status.reason:
            card["reason"] = status.reason
        others: dict[str, Any] = {"max_model_len": None, "aliases": []}  # vLLM's adapters have these values, too
        adapters = [{**card, **others, "id": name, "parent": entry.name} for name in entry.adapters]
        return [card, *adapters]

    def collect(self) -> Iterator[Metric]:
        """Yields metrics of the pool's present state. The Prometheus library's registry calls this method."""
        view, router = self._pool.view(), self._pool.router_status()

        def by_model(read: Callable[[ModelStatus], float | None]) -> dict[tuple[str, ...], float]:
            return {(each.entry.name,): value for each in view if (value := read(each)) is not None}

        states = {(each.entry.name, name): float(each.state == name) for each in view for name in get_args(State)}
        yield _gauge("model_state", "1 for the model's state, 0 for the other states.", states, "model", "state")
        yield counter("model_starts", "Starts of the model's server.", by_model(lambda each: each.num_starts))
        last_start, text = by_model(lambda each: each.last_start_s), "How long the last complete start took."
        yield _gauge("model_last_start_seconds", text, last_start, "model")
        running, waiting = by_model(lambda each: each.num_running), by_model(lambda each: each.num_waiting)
        yield _gauge("model_requests_running", "Requests that the model is answering.", running, "model")
        yield _gauge("model_requests_waiting", "Requests that wait for the model.", waiting, "model")
        memory = by_model(lambda each: each.memory_bytes or 0)
        yield _gauge("model_memory_bytes", "Memory of the model's processes.", memory, "model")
        verbs = [(each.entry.name, each.sleep, verb) for each in view for verb in ("sleep", "wake")]
        changes = {(name, verb): sleep.counts[verb] for name, sleep, verb in verbs}
        yield counter("model_sleep_changes", "How often the model fell asleep, or woke.", changes, "verb")
        failures: dict[tuple[str, ...], int] = {}
        for each in view:
            for why, count in each.sleep.failures.items():
                failures[each.entry.name, *why] = count
        text = "How often the model did not sleep or wake."
        yield counter("model_sleep_failures", text, failures, "verb", "reason")
        seconds = {(name, verb): sleep.last_s[verb] for name, sleep, verb in verbs if verb in sleep.last_s}
        text = "How long the model last took to fall asleep or wake."
        yield _gauge("model_last_sleep_seconds", text, seconds, "model", "verb")
        own = {("router",): router["memory_bytes"], ("standby",): router["standby_bytes"]}
        yield _gauge("router_memory_bytes", "Memory of the router, and of its standbys.", own, "process")
        text = "The memory that all models may use together. 0: no bound."
        yield _gauge("memory_budget_bytes", text, {(): router["memory_budget_bytes"] or 0})


def _read_length(body: bytes) -> int | None:
    """The `max_model_len` of the first model in a server's answer to /v1/models."""
    with suppress(ValueError):
        match read_json(body):
            case {"data": [{"max_model_len": int(length)}, *_]}:
                return length
    return None


_RUNNING: Final = ("starting", "ready", *_SLEEPING, "draining")


def _llama_swap(status: ModelStatus, child: Child | None) -> dict[str, Any]:
    entry, foreign = status.entry, status.entry.foreign
    arguments = entry.arguments if foreign is None else foreign.arguments
    return {
        "model": entry.name,
        "state": "stopping" if status.state == "draining" else status.state,
        "ttl": int(entry.ttl_s or 0),
        "name": entry.card.get("name", ""),
        "description": entry.card.get("description", ""),
        "cmd": shlex.join(hide_in_arguments(arguments)),
        "proxy": child.base_url if child is not None and foreign is not None else "",
    }


def _page_row(status: ModelStatus, now: float, *, has_key: bool) -> dict[str, Any]:
    entry, progress = status.entry, status.progress
    return {
        "id": entry.name,
        "aliases": list(entry.aliases),
        "engine": entry.engine,
        "status": status.state,
        "since": status.since_unix_s,
        "for_s": max(0.0, now - status.since_unix_s),
        "memory_bytes": status.memory_bytes,
        "size_bytes": status.size_bytes,
        "num_running": status.num_running,
        "num_waiting": status.num_waiting,
        "num_starts": status.num_starts,
        "last_start_s": status.last_start_s,
        "last_sleep_s": status.sleep.last_s.get("sleep"),
        "last_wake_s": status.sleep.last_s.get("wake"),
        "can_sleep": status.can_sleep,
        "takes_images": status.takes_images,
        "reason": (status.reason or None) if has_key else None,
        "pinned": entry.pinned,
        "pid": status.pid,
        "progress": progress and progress._asdict(),
    }


def _gauge(name: str, text: str, numbers: Mapping[Any, float], *labels: str) -> Metric:
    family = GaugeMetricFamily(f"vllm_cli:{name}", text, labels=labels)
    for values, number in numbers.items():
        family.add_metric(values, number)
    return family
