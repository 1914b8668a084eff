"""Carries out the scheduler's decisions about a router's models, and reports events to the scheduler.

`model_processes.py` says what a generation is. A ticket is the number of a request, from its arrival until
the request leaves.
"""

import asyncio
import difflib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Protocol

from base.exit_codes import ENGINE_DIED, START_FAILED, USAGE
from base.lifecycle import StartInfo
from router.child.child import Child, ChildPlace
from router.child.server import ChildProgress
from router.memory_watch import MemoryWatch
from router.metrics import RouterMetrics
from router.model_entry import ModelEntry, ModelPolicy
from router.model_memory import MemoryMeter
from router.model_processes import ModelProcesses, ProcessEvents
from router.scheduling.scheduler import ModelScheduler
from router.scheduling.terms import (
    NOTHING,
    Action,
    Admit,
    GiveUp,
    ModelRules,
    ModelView,
    Refuse,
    SchedulerLimits,
    Sleep,
    Start,
    State,
    Stop,
    Wake,
)
from router.sleep_orders import SleepFigures, SleepOrders
from startup.errors import NOT_STARTED_CAUSE, code_line, code_of

logger = logging.getLogger(__name__)

_LONGEST_NAME: Final = 200
_NUM_NEAR: Final = 3
_CONFLICT: Final = 409
_UNAVAILABLE: Final = 503
_POLL_S: Final = 0.05
_STATUSES: Final = {"overloaded": 429, "removed": 404}


class ModelRefused(Exception):  # noqa: N818 - as an answer to a request
    """A model cannot answer a request."""

    def __init__(self, status: int, message: str, retry_after_s: float | None = None, kind: str = "") -> None:
        """`kind` is the scheduler's reason for the refusal. It is empty if the scheduler refused nothing."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class ModelStatus(ModelView):
    """The state of one model, as lists and pages show it."""

    entry: ModelEntry
    since_unix_s: float
    progress: ChildProgress | None
    """How far the model's start has come. None unless the model is starting."""
    memory_bytes: int | None
    size_bytes: int | None
    """The size of the model's weights on disk. None if the weights are not on disk."""
    takes_images: bool | None
    """None if this is unknown."""
    can_sleep: bool
    retry_after_s: float | None
    pid: int | None
    sleep: SleepFigures = field(default_factory=SleepFigures)


class PoolOwner(Protocol):
    """What a pool asks of its router. All methods but `check_again` are called on the event loop."""

    def place(self, entry: ModelEntry, number: int) -> ChildPlace:
        """Returns the socket, environment and log of a new process. `number` is that of its generation."""
        ...

    def keeps_imports(self, entry: ModelEntry) -> bool:
        """Whether a standby makes the model's next start as fast as waking the model."""
        ...

    def check_again(self, entry: ModelEntry) -> ModelEntry:
        """Returns the new entry of a model whose files were replaced. Called on a thread."""
        ...

    async def before_stop(self, child: Child) -> None:
        """Awaited before a ready process without requests is stopped."""
        ...

    def give_up(self, model: str) -> None:
        """Called when a model has failed too often (`ModelEntry.restart_limit`)."""
        ...


class ModelPool:
    """Owns the scheduler and the models' processes. All methods run on the event loop of the main thread."""

    def __init__(
        self, limits: SchedulerLimits, meter: MemoryMeter, owner: PoolOwner, *, only: str | None = None
    ) -> None:
        """`only` is the name of the router's only model, whose memory is not limited."""
        self.entries: Mapping[str, ModelEntry] = {}
        self.metrics = RouterMetrics()
        self.is_draining = False
        self._owner = owner
        self._only = only
        self._limits = limits
        self._meter = meter
        self._scheduler = ModelScheduler(limits, meter.free if only is None else lambda: None)
        self._names: dict[str, ModelEntry] = {}
        self._renewals: set[asyncio.Task[None]] = set()
        """The running tasks that read models' files again."""
        self._has_named_sleep = False
        self._waiters: dict[int, asyncio.Future[Child | ModelRefused]] = {}
        """Ticket -> a future, from the request's arrival to its admission or refusal."""
        self._tickets = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._begin_s = time.monotonic()
        self._memory = MemoryWatch(meter, self._scheduler, self._apply)
        events = ProcessEvents(self._note_ready, self._scheduler.crashed, self._note_end)
        self._processes = ModelProcesses(self.metrics, self._memory, events)
        self.starts = self._processes.starts
        self._sleep = SleepOrders(self._scheduler, meter, self._memory, self._apply)

    # Names

    def resolve(self, requested: str) -> ModelEntry | None:
        """The entry that answers requests for this name. None if no model has it."""
        return self._names.get(requested)

    def near_names(self, requested: str) -> list[str]:
        """The models' names that are most similar to this name. Long names take no longer than short ones."""
        names = [name for name, entry in self._names.items() if not entry.unlisted]
        return difflib.get_close_matches(requested[:_LONGEST_NAME], names, _NUM_NEAR)

    def read_sizes(self, entries: Mapping[str, ModelEntry]) -> None:
        """Reads the sizes of models from disk before `set_entries` uses them. May run on any thread."""
        for entry in entries.values():
            self._meter.need_of(entry)

    def set_entries(self, entries: Mapping[str, ModelEntry]) -> list[str]:
        """Replaces the models. Processes of unchanged models continue.

        Returns the names of the models to preload. These models are new, need a new process, or had no
        `preload`.
        """
        before, self.entries = self.entries, dict(entries)
        self._names = {name: entry for entry in entries.values() for name in entry.request_names}
        both = before.keys() & entries.keys()
        restart = {name for name in both if _needs_restart(before[name], entries[name])}
        rules = {name: self._rules_of(entry) for name, entry in entries.items()}
        self._apply(self._scheduler.set_models(rules, time.monotonic(), restart=restart))
        wanted = {name for name, entry in before.items() if entry.preload} - restart
        return [name for name, entry in entries.items() if entry.preload and name not in wanted]

    # Requests

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Child]:
        """Yields the model's process once it is ready, and until the block is left. Raises ModelRefused."""
        async with self._ticket(name, self._scheduler.arrive) as child:
            yield child

    @asynccontextmanager
    async def _ticket(self, name: str, arrive: Callable[[int, str, float], list[Action]]) -> AsyncIterator[Child]:
        ticket = next(self._tickets)
        begin_s = time.monotonic()
        model = self._scheduler.models.get(name)
        will_start = model is not None and (model.current is None or model.current.state == "draining")
        if will_start:
            await self._renew(name)
        waiter = self._waiters[ticket] = asyncio.get_running_loop().create_future()
        try:
            self._apply(arrive(ticket, name, time.monotonic()))
            outcome = await waiter
            took_s = time.monotonic() - begin_s
            if isinstance(outcome, ModelRefused):
                self.metrics.note_wait(name, took_s, outcome.kind)
                raise outcome
            self.metrics.note_wait(name, took_s)
            self._memory.note_use(name)
            yield outcome
        finally:
            self._waiters.pop(ticket, None)
            self._apply(self._scheduler.leave(ticket, time.monotonic()))

    async def _renew(self, name: str) -> None:
        """Reads again what the router knows from the model's files, if they were replaced.

        Called before a start that a request needs, and after each start, which may have downloaded them.
        """
        if (entry := self.entries.get(name)) is None or not entry.has_files:
            return
        if not await asyncio.to_thread(self._meter.forget_replaced, entry):
            return
        renewed = await asyncio.to_thread(self._owner.check_again, entry)
        await asyncio.to_thread(self.read_sizes, {name: renewed})
        if self.entries.get(name) is entry:
            self.entries = {**self.entries, name: renewed}
            self._names |= dict.fromkeys(renewed.request_names, renewed)
            self._scheduler.renew(name, self._rules_of(renewed))

    @contextmanager
    def hold(self, child: Child) -> Iterator[None]:
        """Keeps the process from being stopped within the block. At the beginning, a lease must exist."""
        ticket = next(self._tickets)
        if (number := self._processes.number_of(child)) is not None:
            self._scheduler.hold(ticket, number)
        try:
            yield
        finally:
            self._apply(self._scheduler.leave(ticket, time.monotonic()))

    def is_ready(self, name: str) -> bool:
        """Whether the model's process is ready and admits requests."""
        model = self._scheduler.models.get(name)
        return model is not None and model.is_admitting

    def child_of(self, name: str) -> Child | None:
        """The model's process if it is ready or asleep. Without a lease, it may be stopped at any time."""
        model = self._scheduler.models.get(name)
        answers = model is not None and (model.is_admitting or model.sleeper is not None)
        return self.process_of(name) if answers else None

    def process_of(self, name: str) -> Child | None:
        """The model's process in any state. Some servers answer some requests even during their start."""
        return self._processes.get(self._current_of(name))

    def has_process(self, child: Child) -> bool:
        """Whether any process of this child still runs."""
        return child in self._processes

    def exit_code(self, name: str) -> int:
        """The exit code of the last process, or -N after signal N. START_FAILED for a user's command."""
        return START_FAILED if self.entries[name].foreign else self._processes.exit_codes.get(name, START_FAILED)

    def has_failed(self, name: str) -> bool:
        """Whether the model's last process has failed, perhaps while it was asked to stop."""
        has_died = not self.entries[name].foreign and self._processes.exit_codes.get(name) == ENGINE_DIED
        return has_died or self._scheduler.models[name].state == "failed"

    def progress(self, name: str) -> str:
        """Describes the step that a request for this model waits for."""
        child, model = self.process_of(name), self._scheduler.models.get(name)
        if child is None or model is None or model.state == "asleep":
            return "waiting for room"
        if model.state == "starting":
            return f"starting, {child.progress}"
        if model.state in ("falling asleep", "waking"):
            return model.state
        return "waiting for other requests" if model.state == "ready" else "waiting for the next start"

    # By hand

    async def load(self, name: str) -> State:
        """Starts the model, even after a failure, and waits until it is ready. Raises ModelRefused.

        Like `sleep` and `unload`, returns the state that was reached, which the model may have left again.
        """
        async with self._ticket(name, self._scheduler.load):
            return "ready"

    async def sleep(self, name: str) -> State:
        """Puts the model to sleep after its running requests. Returns when it sleeps. Raises ModelRefused."""
        model, entry = self._scheduler.models[name], self.entries[name]
        if entry.engine == "embedded":
            state = await self.unload(name)
            return "asleep" if self._can_sleep(entry) else state
        if not model.rules.asleep:
            text = f"{name} cannot sleep. vLLM's models on a GPU can, with `on_swap: sleep` or `idle_sleep`"
            raise ModelRefused(_CONFLICT, f"{text}, and so can commands with `sleep` and `wake`")
        process = model.current
        if process is None or not (model.can_sleep or process.state in ("falling asleep", "asleep")):
            why = "" if model.state != "ready" else ", and requests or another process wait to take its place"
            raise ModelRefused(_CONFLICT, f"{name} is {model.state}{why}: only a ready model falls asleep.")
        num_sleeps = process.num_sleeps - (process.state == "asleep")
        self._apply(self._scheduler.sleep(name, time.monotonic()))
        while process.state == "falling asleep" and process.number in self._scheduler.generations:
            await asyncio.sleep(_POLL_S)
        if process.num_sleeps > num_sleeps:
            return "asleep"
        if process.state == "ready":
            raise ModelRefused(_CONFLICT, f"{name} stays awake: a request came before it fell asleep.")
        text = f"{name} did not fall asleep, and is stopped. {process.outcome.text}"
        raise ModelRefused(_UNAVAILABLE, text.strip())

    async def unload(self, name: str) -> State:
        """Stops the model after its running requests, or cancels its start. Returns when it has stopped."""
        self._apply(self._scheduler.unload(name, time.monotonic()))
        view = self._scheduler.view().get(name)
        if view is not None and view.num_running:
            logger.info("%s is to stop after %d requests", name, view.num_running)
        await self._processes.wait(name)
        return "stopped"

    # Status

    def view(self) -> list[ModelStatus]:
        """The status of all models, in the order of the file."""
        found = self._scheduler.view()
        now, unix_s = time.monotonic(), time.time()
        statuses = []
        for name, entry in self.entries.items():
            view, child = found[name], self.process_of(name)
            is_left = view.state == "stopped" and view.num_starts > 0 and entry.engine == "embedded"
            if is_left and self._can_sleep(entry):  # a standby keeps its imports
                view = replace(view, state="asleep")
            statuses.append(
                ModelStatus(
                    **vars(view),
                    entry=entry,
                    since_unix_s=unix_s - (now - view.since_s),
                    progress=child.progress if child is not None and view.state == "starting" else None,
                    memory_bytes=self._meter.measured_bytes(name) if child is not None else None,
                    size_bytes=self._meter.size_bytes(name),
                    takes_images=self._meter.takes_images(name),
                    can_sleep=self._can_sleep(entry),
                    retry_after_s=None if view.retry_at_s is None else max(0.0, view.retry_at_s - now),
                    pid=child.process.pid if child is not None and child.process is not None else None,
                    sleep=self._sleep.figures[name],
                )
            )
        return statuses

    def _can_sleep(self, entry: ModelEntry) -> bool:
        """Whether sleep is more than a stop. With the embedded engine, a standby keeps the imports."""
        is_kept = entry.should_sleep and self._owner.keeps_imports(entry)
        return is_kept if entry.engine == "embedded" else bool(entry.sleep_levels)

    def router_status(self) -> dict[str, Any]:
        """The router's own part of its status."""
        views = self._scheduler.view().values()
        running = [view for view in views if view.state not in ("stopped", "failed")]
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
        """Starts measuring the memory of models and standbys."""
        self._memory.begin(standby_bytes)

    async def drain(self) -> None:
        """Refuses all waiting requests, and stops each process once its running requests have ended."""
        self.is_draining = True
        self._apply(self._scheduler.drain(time.monotonic()))
        for child in self._processes:
            child.drain()
        await self._processes.wait_for_all()
        self._memory.close()
        if self._timer is not None:
            self._timer.cancel()

    def signal_groups(self, number: int) -> None:
        for child in self._processes:
            child.signal_group(number)

    def kill(self) -> None:
        for child in self._processes:
            child.kill()

    # Actions of the scheduler

    def _apply(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Start(number, model):
                    self._start(number, model)
                case Stop(number):
                    if (child := self._processes.get(number)) is not None:
                        self._name_sleep(child.entry)
                        child.stop()
                case Sleep(number, level):
                    self._order(number, level)
                case Wake(number):
                    self._order(number, 0)
                case GiveUp(model):
                    self._owner.give_up(model)
                case Admit(ticket, number):
                    self._answer(ticket, self._processes[number])
                case Refuse(ticket, kind, reason, retry_after_s):
                    self._answer(ticket, ModelRefused(_STATUSES.get(kind, _UNAVAILABLE), reason, retry_after_s, kind))
        self._arm_timer()

    def _start(self, number: int, name: str) -> None:
        entry = self.entries[name]
        generation = self._scheduler.generations[number]
        try:
            child = Child(entry, self._owner.place(entry, number), lambda: generation.is_end_awaited)
        except OSError as err:
            code, reason = code_of(NOT_STARTED_CAUSE), f"It cannot be started: {err}. {code_line(NOT_STARTED_CAUSE)}"
            self.metrics.note_start(name, "failed", StartInfo("", code))
            asyncio.get_running_loop().call_soon(self._note_end, number, name, reason, code)
            return
        self._processes.start(number, child, self._owner.before_stop)

    def _order(self, number: int, level: int) -> None:
        """Puts a process to sleep at `level`, or wakes it if `level` is 0."""
        if self._only is not None and level == 1:  # the scheduler does not count the memory of an only model
            levels, free = self._scheduler.generations[number].levels, self._meter.free()
            if free is not None and 2 in levels:
                weights = levels[1].minus(levels[2])
                level = 1 if weights.fits_in(free) else 2
        self._sleep.give(number, self._processes[number], level)

    def _name_sleep(self, stopped: ModelEntry) -> None:
        """Logs once that `--on-swap sleep` would make swaps of vLLM's models on a GPU faster."""
        if self._has_named_sleep or self.is_draining:
            return
        if stopped.engine != "vllm" or stopped.should_sleep:
            return
        others = [name for name, entry in self.entries.items() if entry.engine == "vllm" and name != stopped.name]
        is_swap = any(self._scheduler.models[name].is_hungry for name in others)
        if is_swap and self._meter.has_gpus:
            self._has_named_sleep = True
            logger.info(
                "%s is stopped for another model. With --on-swap sleep, both would keep their processes", stopped.name
            )

    def _answer(self, ticket: int, outcome: Child | ModelRefused) -> None:
        if (waiter := self._waiters.get(ticket)) is not None and not waiter.done():
            waiter.set_result(outcome)

    def _arm_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if (delay_s := self._scheduler.next_tick_s(time.monotonic())) is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.001, delay_s), self._tick)

    def _tick(self) -> None:
        self._apply(self._scheduler.tick(time.monotonic()))

    # A model's process

    def _note_ready(self, number: int, child: Child) -> None:
        task = asyncio.create_task(self._renew(child.entry.name))
        self._renewals.add(task)
        task.add_done_callback(self._renewals.discard)
        self._apply(self._scheduler.became_ready(number, time.monotonic()))

    def _note_end(self, number: int, name: str, reason: str | None, code: str) -> None:
        """Logs and reports the end of a process. `code` names the cause of a failed start, or is empty."""
        exit_code = self._processes.exit_codes.get(name)
        is_lasting = exit_code in (USAGE, START_FAILED) and not self._has_run(name)
        process = name if self._current_of(name) == number else f"a process of {name}"
        if reason is None:
            logger.info("%s has stopped", process)
        elif name != self._only or self.entries[name].foreign or not self._ends_router(name, is_lasting=is_lasting):
            logger.error("%s has failed: %s", process, reason, extra={"code": code or None})
        self._apply(self._scheduler.ended(number, reason, time.monotonic(), is_lasting=is_lasting))

    def _ends_router(self, name: str, *, is_lasting: bool) -> bool:
        """Whether the router ends with its only model. If it does, the model's own log gives the reason."""
        return is_lasting or (self.entries[name].restart_limit is None and not self._has_run(name))

    def _has_run(self, name: str) -> bool:
        model = self._scheduler.models.get(name)
        return model is not None and model.last_start_s is not None

    def _current_of(self, name: str) -> int:
        """The number of the generation that gets the model's requests. 0 if there is none."""
        model = self._scheduler.models.get(name)
        return 0 if model is None or model.current is None else model.current.number

    def _rules_of(self, entry: ModelEntry) -> ModelRules:
        return ModelRules(
            **{each.name: getattr(entry, each.name) for each in fields(ModelPolicy)},
            asleep=self._meter.asleep_needs_of(entry),
            may_overlap=entry.foreign is None,  # a command may have a fixed port or name
            need=self._meter.need_of(entry) if self._only is None else NOTHING,
        )


def _needs_restart(before: ModelEntry, after: ModelEntry) -> bool:
    """Whether a changed entry needs a new process. Changes that concern only the router need none."""
    return (before.arguments, before.foreign, before.env) != (after.arguments, after.foreign, after.env)
