"""The models of a router at run time: does what the scheduler decides, and tells it what happens."""

import asyncio
import difflib
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from base.exit_codes import START_FAILED, USAGE
from router.child import Child, ChildPlace
from router.child_server import ChildProgress
from router.memory_watch import MemoryWatch
from router.model_entry import ModelEntry
from router.model_memory import MemoryMeter
from router.scheduler import ModelScheduler
from router.scheduler_terms import (
    NOTHING,
    Action,
    Admit,
    GiveUp,
    ModelRules,
    ModelView,
    Refuse,
    SchedulerLimits,
    Start,
    StartBeside,
    Stop,
    StopBeside,
)

logger = logging.getLogger(__name__)

_NUM_STARTS: Final = 200
_LONGEST_NAME: Final = 200
_NUM_NEAR: Final = 3
_UNAVAILABLE: Final = 503
_STATUSES: Final = {"overloaded": 429, "removed": 404}


class ModelRefused(Exception):  # noqa: N818 - as an answer to a request
    """A request cannot be answered by its model."""

    def __init__(self, status: int, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True)
class ModelStatus(ModelView):
    """One model, as lists and pages show it."""

    entry: ModelEntry
    since_unix_s: float
    progress: ChildProgress | None
    """Only while it starts."""
    memory_bytes: int | None
    size_bytes: int | None
    """Of its weights on disk; None if they are not there."""
    retry_after_s: float | None
    pid: int | None


@dataclass
class _Waiter:
    """A request between its arrival and its admission."""

    model: str
    outcome: "asyncio.Future[Child | ModelRefused]"


class ModelPool:
    """Owns the scheduler and the models' processes; all methods run on the event loop of the main thread."""

    def __init__(
        self,
        limits: SchedulerLimits,
        meter: MemoryMeter,
        place: Callable[[ModelEntry, int], ChildPlace],
        *,
        only: str | None = None,
    ) -> None:
        """
        Args:
            place: what a child gets; called with its entry and a number that no other child has.
            only: the model of a router that never has another one, so that memory decides nothing.
        """
        self.entries: Mapping[str, ModelEntry] = {}
        """By name, in the order of the file."""
        self.starts: deque[dict[str, Any]] = deque(maxlen=_NUM_STARTS)
        """The last starts, oldest first."""
        self.is_draining = False
        self.before_stop: Callable[[Child], Awaitable[None]] | None = None
        """Awaited before a process that answers requests, and has none, is asked to end."""
        self.on_give_up: Callable[[str], None] = lambda _: None
        """Called with a model that is not started again (`ModelEntry.restart_limit`)."""
        self._only = only
        self._limits = limits
        self._meter = meter
        self._place = place
        self._scheduler = ModelScheduler(limits, meter.free if only is None else lambda: None)
        self._names: dict[str, ModelEntry] = {}
        self._children: dict[str, Child] = {}
        self._beside: dict[str, Child] = {}
        """The second process of a changed model: the new one until it takes over, then the old one."""
        self._runs: dict[Child, asyncio.Task[None]] = {}
        self._exit_codes: dict[str, int] = {}
        self._waiters: dict[int, _Waiter] = {}
        self._numbers = itertools.count(1)
        self._child_numbers = itertools.count(1)
        """Part of the paths of sockets, whose length is limited."""
        self._timer: asyncio.TimerHandle | None = None
        self._begin_s = time.monotonic()
        self._memory = MemoryWatch(meter, self._scheduler, self._apply)

    # Names

    def resolve(self, requested: str) -> ModelEntry | None:
        """The entry that answers requests for this name."""
        return self._names.get(requested)

    def near_names(self, requested: str) -> list[str]:
        """Names that are similar; the cost does not grow with what a client sends."""
        names = [name for name, entry in self._names.items() if not entry.unlisted]
        return difflib.get_close_matches(requested[:_LONGEST_NAME], names, _NUM_NEAR)

    def read_sizes(self, entries: Mapping[str, ModelEntry]) -> None:
        """Looks at the models on disk, so that `set_entries` need not; may run on any thread."""
        for entry in entries.values():
            self._meter.need_of(entry)

    def set_entries(self, entries: Mapping[str, ModelEntry]) -> list[str]:
        """Replaces the models; the processes of unchanged models go on.

        Returns the models to preload: those with `preload` that are new, or need another process.
        """
        before, self.entries = self.entries, dict(entries)
        self._names = {name: entry for entry in entries.values() for name in entry.request_names}
        restart = {name for name, entry in entries.items() if name in before and _needs_restart(before[name], entry)}
        rules = {name: self._rules_of(entry) for name, entry in entries.items()}
        self._apply(self._scheduler.set_models(rules, time.monotonic(), restart=restart))
        wanted = {name for name, entry in before.items() if entry.preload} - restart
        return [name for name, entry in entries.items() if entry.preload and name not in wanted]

    # Requests

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Child]:
        """The model's process, which answers requests until the block is left.

        Raises:
            ModelRefused: it cannot be started, or not now.
        """
        async with self._ticket(name, self._scheduler.arrive) as child:
            yield child

    @asynccontextmanager
    async def _ticket(self, name: str, arrive: Callable[[int, str, float], list[Action]]) -> AsyncIterator[Child]:
        ticket = next(self._numbers)
        waiter = _Waiter(name, asyncio.get_running_loop().create_future())
        self._waiters[ticket] = waiter
        try:
            self._apply(arrive(ticket, name, time.monotonic()))
            outcome = await waiter.outcome
            if isinstance(outcome, ModelRefused):
                raise outcome
            self._memory.note_use(name)
            yield outcome
        finally:
            self._waiters.pop(ticket, None)
            self._apply(self._scheduler.leave(ticket, time.monotonic()))

    @contextmanager
    def hold(self, child: Child) -> Iterator[None]:
        """A process on which there is a lease is not stopped until the block is left."""
        ticket, name = next(self._numbers), child.entry.name
        self._scheduler.hold(ticket, name, is_old=self._beside.get(name) is child)
        try:
            yield
        finally:
            self._apply(self._scheduler.leave(ticket, time.monotonic()))

    def is_ready(self, name: str) -> bool:
        """Whether its process answers requests, and is not to be stopped."""
        return name in self._children and self._scheduler.is_admitting(name)

    def child_of(self, name: str) -> Child | None:
        """Its process if that answers requests, without a lease: it may be stopped at any time."""
        return self._children[name] if self.is_ready(name) else None

    def process_of(self, name: str) -> Child | None:
        """Its process in whatever state: one that starts may answer what it knows already."""
        return self._children.get(name)

    def has_process(self, child: Child) -> bool:
        """Whether its processes have not ended."""
        return child in self._runs

    def exit_code(self, name: str) -> int:
        """How its last process has ended: its exit code, or -N after signal N."""
        return self._exit_codes.get(name, START_FAILED)

    def progress(self, name: str) -> str:
        """What a request for this model waits for."""
        child, view = self._children.get(name), self._scheduler.view_of(name)
        if child is None or view is None:
            return "waiting for room"
        if view.state == "starting":
            return f"starting, {child.progress}"
        return "waiting for other requests" if view.state == "ready" else "waiting for the next start"

    # By hand

    async def load(self, name: str) -> None:
        """Returns when the model is ready; raises ModelRefused. One that has failed is started at once."""
        async with self._ticket(name, self._scheduler.load):
            pass

    async def unload(self, name: str) -> None:
        """Returns when the model has stopped, after its running requests; a start is broken off."""
        self._apply(self._scheduler.unload(name, time.monotonic()))
        if (view := self._scheduler.view_of(name)) is not None and view.num_running:
            logger.info("%s is to stop after %d requests", name, view.num_running)
        if runs := {run for child, run in self._runs.items() if child.entry.name == name}:
            await asyncio.wait(runs)

    # Status

    def view(self) -> list[ModelStatus]:
        """All models, in the order of the file."""
        found = self._scheduler.view()
        now, unix_s = time.monotonic(), time.time()
        statuses = []
        for name, entry in self.entries.items():
            view, child = found[name], self._children.get(name)
            statuses.append(
                ModelStatus(
                    **vars(view),
                    entry=entry,
                    since_unix_s=unix_s - (now - view.since_s),
                    progress=child.progress if child is not None and view.state == "starting" else None,
                    memory_bytes=self._meter.measured_bytes(name) if child is not None else None,
                    size_bytes=self._meter.size_bytes(name),
                    retry_after_s=None if view.retry_at_s is None else max(0.0, view.retry_at_s - now),
                    pid=child.process.pid if child is not None and child.process is not None else None,
                )
            )
        return statuses

    def router_status(self) -> dict[str, Any]:
        """The router itself."""
        views = self._scheduler.view().values()
        running = [view for view in views if view.state in ("starting", "ready", "draining")]
        return {
            "uptime_s": round(time.monotonic() - self._begin_s, 1),
            "memory_bytes": self._memory.router_bytes,
            "standby_bytes": self._memory.standby_bytes,
            "memory_budget_bytes": self._limits.memory_budget_bytes,
            "needed_bytes": sum(view.need.ram_bytes for view in running),
            "max_running": self._limits.max_running,
        }

    # Life of the pool

    def begin(self, standby_bytes: Callable[[], int]) -> None:
        """Measures memory from now on."""
        self._memory.begin(standby_bytes)

    async def drain(self) -> None:
        """Refuses what waits, and ends all processes after their running requests."""
        self.is_draining = True
        self._apply(self._scheduler.drain(time.monotonic()))
        for child in self._runs:
            child.drain()
        while self._runs:
            await asyncio.wait(set(self._runs.values()))
        self._memory.close()
        if self._timer is not None:
            self._timer.cancel()

    def signal_groups(self, number: int) -> None:
        """Sends a signal to the process groups of all models."""
        for child in self._runs:
            child.signal_group(number)

    def kill(self) -> None:
        """Ends all processes at once."""
        for child in self._runs:
            child.kill()

    # Actions of the scheduler

    def _apply(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Start(model):
                    self._start(model, self._children)
                case StartBeside(model):
                    self._start(model, self._beside)
                case Stop(model) | StopBeside(model):
                    children = self._children if isinstance(action, Stop) else self._beside
                    if (child := children.get(model)) is not None:
                        child.stop()
                case GiveUp(model):
                    self.on_give_up(model)
                case Admit(ticket):
                    self._admit(ticket)
                case Refuse(ticket, kind, reason, retry_after_s):
                    self._refuse(ticket, ModelRefused(_STATUSES.get(kind, _UNAVAILABLE), reason, retry_after_s))
        self._arm_timer()

    def _start(self, model: str, children: dict[str, Child]) -> None:
        entry = self.entries[model]
        try:
            child = children[model] = Child(entry, self._place(entry, next(self._child_numbers)))
            child.is_awaited = lambda: self._scheduler.is_awaited(model)
        except OSError as err:
            reason = f"It cannot be started: {err}"
            end = self._end if children is self._children else self._end_beside
            asyncio.get_running_loop().call_soon(end, model, reason)
        else:
            self._runs[child] = asyncio.create_task(self._run_model(model, child), name=f"model {model}")

    def _admit(self, ticket: int) -> None:
        if (waiter := self._waiters.get(ticket)) is not None and not waiter.outcome.done():
            waiter.outcome.set_result(self._children[waiter.model])

    def _refuse(self, ticket: int, refused: ModelRefused) -> None:
        if (waiter := self._waiters.get(ticket)) is not None and not waiter.outcome.done():
            waiter.outcome.set_result(refused)

    def _arm_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (delay_s := self._scheduler.next_tick_s(time.monotonic())) is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.001, delay_s), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._apply(self._scheduler.tick(time.monotonic()))

    # A model's process

    async def _run_model(self, name: str, child: Child) -> None:
        """From the start of a process to its end."""
        begin_s = time.monotonic()
        record: dict[str, Any] = {"model": name, "begin_s": time.time(), "took_s": None, "outcome": "starting"}
        self.starts.append(record)

        def note_ready() -> None:
            took_s = time.monotonic() - begin_s
            record.update(took_s=round(took_s, 3), outcome="ready")
            logger.info("%s is ready after %.2f s", name, took_s)
            self._memory.follow(name, child.pids)
            if self._children.get(name) is child:
                self._apply(self._scheduler.became_ready(name, time.monotonic()))
                return
            self._beside[name], self._children[name] = self._children[name], child
            self._apply(self._scheduler.took_over(name, time.monotonic()))

        def note_crash() -> None:
            if self._children.get(name) is child:
                self._apply(self._scheduler.crashed(name))

        reason: str | None = "The router failed to start it"
        try:
            logger.info("%s starts", name)
            reason = await child.run(note_ready, self.before_stop, note_crash)
        except Exception as err:
            logger.exception("the process of %s cannot be followed", name)
            reason = f"The router failed: {err}"
        finally:
            if child.exit_code is not None:
                self._exit_codes[name] = child.exit_code
            del self._runs[child]
            if record["took_s"] is None:
                record.update(
                    took_s=round(time.monotonic() - begin_s, 3), outcome="stopped" if reason is None else "failed"
                )
            self._note_gone(name, child, reason)

    def _note_gone(self, name: str, child: Child, reason: str | None) -> None:
        """All processes of a child have ended."""
        if self._beside.get(name) is child:
            self._end_beside(name, reason)
            return
        self._memory.forget(name)
        del self._children[name]
        if (other := self._beside.get(name)) is not None and not other.has_served:
            self._children[name] = self._beside.pop(name)
        self._end(name, reason)

    def _end_beside(self, name: str, reason: str | None) -> None:
        """The second process is gone."""
        self._beside.pop(name, None)
        if reason is not None:
            logger.error("a process of %s has failed: %s", name, reason)
        self._apply(self._scheduler.beside_ended(name, reason, time.monotonic()))

    def _end(self, name: str, reason: str | None) -> None:
        is_lasting = self._exit_codes.get(name) in (USAGE, START_FAILED) and not self._has_run(name)
        if reason is None:
            logger.info("%s has stopped", name)
        elif name != self._only or not self._ends_router(name, is_lasting=is_lasting):
            logger.error("%s has failed: %s", name, reason)
        self._apply(self._scheduler.ended(name, reason, time.monotonic(), is_lasting=is_lasting))

    def _ends_router(self, name: str, *, is_lasting: bool) -> bool:
        """Whether the router ends with the only model, whose own lines tell why."""
        return is_lasting or (self.entries[name].restart_limit is None and not self._has_run(name))

    def _has_run(self, name: str) -> bool:
        view = self._scheduler.view_of(name)
        return view is not None and view.last_start_s is not None

    def _rules_of(self, entry: ModelEntry) -> ModelRules:
        return ModelRules(
            ttl_s=entry.ttl_s,
            pinned=entry.pinned,
            concurrency=entry.concurrency,
            refuses_excess=entry.refuses_excess,
            excludes=entry.excludes,
            restart_limit=entry.restart_limit,
            may_overlap=entry.foreign is None,  # a command may have a port or a name of its own
            need=self._meter.need_of(entry) if self._only is None else NOTHING,
        )


def _needs_restart(before: ModelEntry, after: ModelEntry) -> bool:
    """Whether its process cannot go on: what only the router uses may change."""
    return (before.words, before.foreign, before.env) != (after.words, after.foreign, after.env)
