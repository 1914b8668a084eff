"""Decides which models run and which requests they get, as a pure function of a sequence of events.

The scheduler uses no clock, process or event loop. Each event is a method that gets the time and returns
actions. Free memory is read only while a model waits for its start. `start_plan.py` decides which models are
stopped for others. This module imports only the standard library.

A generation is one process of a model from its start to its end. A ticket is the number of a request. A
request has a lease on its model from its admission until it leaves.

Let L be the longest time of a lease, S the longest time of a start and a stop together, and W the larger of
max_wait_s and min_stay_s. If there is room for one model, these bounds hold. The functions that keep them
name their numbers.

1. A model that became ready is stopped for another model after min_stay_s at the earliest. So there are at
   most T / min_stay_s + 1 swaps in T seconds. There are at most T / W + 1 if requests follow without a gap.
2. A model stops admitting requests at most W after another model began to wait and its own start is complete.
3. The same bounds hold for models that sleep instead. S is also the longest time to fall asleep and to wake.
   min_stay_s begins when a model is awake again. A sleeping model can be stopped at any time.
4. If n models are in use, a request is admitted or refused within n * (W + L + S), whatever the number of
   requests. Models start in the order in which they began to wait. A model that was stopped for another model
   goes to the end of this order. The waits for `concurrency` and for the back-off come in addition.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from typing import Final

from router.scheduling.model import Model, ModelProcess
from router.scheduling.start_plan import Placement, StartPlan, Victim
from router.scheduling.terms import (
    Action,
    Admit,
    GiveUp,
    ModelRules,
    ModelView,
    Need,
    Outcome,
    RefusalKind,
    Refuse,
    SchedulerLimits,
    Sleep,
    Start,
    State,
    Stop,
    Wake,
)

_SETTLE_S: Final = 2.0
"""Seconds after a process's end until its memory is free. Until then, no model is stopped to gain memory."""


class ModelScheduler:
    """Decides about all models. Each method with `now`, in seconds of any clock, handles an event.

    The methods return actions, which the caller must carry out in order. The caller gives each request a
    number, its ticket. The scheduler numbers the generations.
    """

    def __init__(self, limits: SchedulerLimits, read_free: Callable[[], Need | None] = lambda: None) -> None:
        """`read_free` returns the memory that is free now. If that is None, only the budget limits memory."""
        self._limits = limits
        self.models: Mapping[str, Model] = {}
        """Name -> model. Only the scheduler changes this mapping."""
        self.generations: dict[int, ModelProcess] = {}
        """Number -> generation that has not ended. Generations of removed models are included."""
        self._numbers = itertools.count(1)
        self._leases: dict[int, ModelProcess] = {}
        """Ticket of a request -> the generation on which the request has a lease."""
        self._waiting: dict[int, Model] = {}
        """Ticket of a request -> the model that the request waits for."""
        self._read_free = read_free
        self._settled_s = -math.inf
        """The time at which the memory of ended processes should be free."""
        self._actions: list[Action] = []
        self._is_ending = False
        self._due_s: float | None = None

    # Events: models

    def set_models(self, rules: Mapping[str, ModelRules], now: float, restart: Collection[str] = ()) -> list[Action]:
        """Replaces the models.

        Args:
            restart: names of models that need a new process. If there is room for two processes, the new
                process starts now and takes over. Otherwise the old process admits no more requests, and the
                new process starts after it.
        """
        before, known = self.models, self._known()
        self.models = {}
        for name, rule in rules.items():
            self.models[name] = known.get(name) or Model(name, rule, now)
        for name in before.keys() - rules.keys():
            self._refuse_waiting(before[name], "removed", _removed(name))
            self._drain(before[name], now)
        for name, model in known.items():
            if name not in rules:
                continue
            if name in restart or name not in before:
                self._change(model, rules[name], now)
            else:
                model.update(rules[name])
        for model in self.models.values():
            self._admit_waiting(model)
        return self._decide(now)

    def renew(self, name: str, rules: ModelRules) -> None:
        """The model's files were replaced, so earlier measurements of its memory are worthless."""
        self.models[name].update(rules)
        self.models[name].memory.forget_peaks()

    def became_ready(self, number: int, now: float) -> list[Action]:
        """The generation answers requests. The first one of a changed entry gets all further requests."""
        if (generation := self._in_state(number, "starting")) is None:
            return []
        model = generation.model
        model.note_ready(now - generation.since_s)
        generation.become_ready(now)
        if generation is model.next:
            assert model.current is not None
            self._drain_generation(model.current, now)
            model.current, model.next = generation, None
        self._admit_waiting(model)
        return self._decide(now)

    def fell_asleep(self, number: int, now: float) -> list[Action]:
        """The generation is asleep. (If it does not fall asleep in time, the pool ends it.)"""
        if (generation := self._in_state(number, "falling asleep")) is None:
            return []
        generation.become_asleep(now)
        generation.model.note_sleep(now)
        self._begin_settling(now)
        return self._decide(now)

    def could_not_sleep(self, number: int, reason: str, now: float) -> list[Action]:
        """The generation cannot fall asleep. It is stopped instead."""
        generation = self._in_state(number, "falling asleep")
        if generation is None or generation.has_crashed:
            return []
        generation.outcome = Outcome("could not sleep", reason)
        self._drain_generation(generation, now)
        return self._decide(now)

    def woke(self, number: int, now: float) -> list[Action]:
        """The generation is awake and answers requests. (If it does not wake in time, the pool ends it.)"""
        if (generation := self._in_state(number, "waking")) is None:
            return []
        generation.become_ready(now)
        self._admit_waiting(generation.model)
        return self._decide(now)

    def crashed(self, number: int) -> None:
        """The generation no longer answers, but has running processes. Requests wait for the next one."""
        if (generation := self.generations.get(number)) is not None:
            generation.has_crashed = generation.state not in ("starting", "draining")

    def ended(self, number: int, reason: str | None, now: float, *, is_lasting: bool = False) -> list[Action]:
        """All processes of the generation have ended.

        Args:
            reason: why the generation has failed. None if it was asked to stop.
            is_lasting: whether the same start would fail again.
        """
        if (generation := self.generations.pop(number, None)) is None:
            return []
        for ticket in generation.leases:
            del self._leases[ticket]
        model = generation.model
        if generation is model.next:
            model.next, model.outcome = None, Outcome("failed", reason) if reason else Outcome()
        elif generation is model.current:
            model.current, model.next = model.next, None
            if model.current is None:
                self._note_end(generation, reason, now, is_lasting=is_lasting)
        self._begin_settling(now)
        return self._decide(now)

    def sleep(self, model: str, now: float) -> list[Action]:
        """The user puts a ready model to sleep. It sleeps after its requests, until the next one.

        A request that arrives before the sleep begins cancels it.
        """
        found = self.models.get(model)
        if found is not None and found.current is not None and found.can_sleep:
            found.current.begin_rest(now)
            self._rest_if_idle(found.current, now)
        return self._decide(now)

    def unload(self, model: str, now: float) -> list[Action]:
        """The user stops the model. It stops after its leases. The next request starts it again."""
        if (found := self.models.get(model)) is not None:
            found.forget_failure(now)
            for generation in self.generations.values():
                generation.is_unloaded |= generation.model is found
            self._drain(found, now)
        return self._decide(now)

    # Events: requests

    def arrive(self, ticket: int, name: str, now: float) -> list[Action]:
        """A request arrives, and is admitted or refused. If neither is possible yet, the request waits."""
        if (model := self._model_for(ticket, name)) is None:
            return self._take_actions()
        if not model.is_full:  # an excess request is refused, and must not keep the model awake
            self._cancel_sleep(model)
        if model.is_backing_off(now) and not model.will_restart:
            self._refuse(ticket, "failed", model.outcome.failure, model.retry_after_s(now))
        elif model.has_free_lease:
            self._admit(ticket, model)
        elif model.is_full or len(model.waiting) >= self._limits.max_waiting:
            self._refuse(ticket, "overloaded", _overloaded(model), 1)
        else:
            return self._enqueue(ticket, model, model.waiting, now)
        return self._take_actions()

    def load(self, ticket: int, name: str, now: float) -> list[Action]:
        """The user starts the model, even if it has failed. No limit of requests applies.

        `Admit` means that the model is ready. The caller should then call `leave` at once.
        """
        if (model := self._model_for(ticket, name)) is None:
            return self._take_actions()
        self._cancel_sleep(model)
        if model.is_admitting:
            self._admit(ticket, model)
            return self._take_actions()
        model.retry_s = min(model.retry_s, now)
        return self._enqueue(ticket, model, model.loads, now)

    def hold(self, ticket: int, number: int) -> None:
        """Gives the ticket a lease without any limit. Does nothing if the generation has ended."""
        if (generation := self.generations.get(number)) is not None:
            generation.leases.add(ticket)
            generation.holds.add(ticket)
            self._leases[ticket] = generation

    def leave(self, ticket: int, now: float) -> list[Action]:
        """A request leaves. Its lease or its place in the queue ends. Unknown tickets are ignored."""
        if (generation := self._leases.pop(ticket, None)) is not None:
            return self._end_lease(ticket, generation, now)
        if (model := self._waiting.pop(ticket, None)) is None:
            return []
        was_first = model.is_first_waiter(ticket)
        model.waiting.pop(ticket, None)
        model.loads.pop(ticket, None)
        return self._decide(now) if was_first else []

    # Events: memory and time

    def measured(self, number: int, memory: Need, now: float, *, is_settled: bool = True) -> list[Action]:
        """Notes a generation's memory. The largest measurement while it is ready becomes its model's need.

        Unless it `is_settled`, its processes may take more memory. Then the need is at least the estimate.
        """
        if (generation := self.generations.get(number)) is None:
            return []
        generation.note_memory(memory, self._limits.budget, is_settled=is_settled)
        return self._decide(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed. Stops idle models, or puts them to sleep, and refuses requests at their limit."""
        for model in self.models.values():
            self._refuse_late(model, now)
            ttl_end_s, sleep_end_s = model.ttl_end_s(), model.idle_sleep_end_s()
            if ttl_end_s is not None and ttl_end_s <= now:
                self._drain(model, now)
            elif sleep_end_s is not None and sleep_end_s <= now:
                assert model.current is not None
                self._fall_asleep(model.current, now)
        return self._decide(now)

    def next_tick_s(self, now: float) -> float | None:
        """Seconds until `tick` must be called. None if only another event can change something."""
        ends = [self._due_s]
        for model in self.models.values():
            ends += (model.ttl_end_s(), model.idle_sleep_end_s(), model.patience_end_s(self._limits.max_wait_s))
        dues = [end_s for end_s in ends if end_s is not None]
        return max(0.0, min(dues) - now) if dues else None

    def drain(self, now: float) -> list[Action]:
        """The router ends. Refuses all waiting and new requests, and stops each model after its leases."""
        self._is_ending = True
        for model in self.models.values():
            self._refuse_waiting(model, "shutting_down", _ENDING)
            self._drain(model, now)
        return self._decide(now)

    # View

    def view(self) -> dict[str, ModelView]:
        """The state of all models. Removed models are included while they have a process."""
        generations = self.generations.values()
        return {
            name: model.view([each for each in generations if each.model is model])
            for name, model in self._known().items()
        }

    def _known(self) -> dict[str, Model]:
        with_process = {each.name: each.model for each in self.generations.values()}
        return {**with_process, **self.models}

    def _in_state(self, number: int, state: State) -> ModelProcess | None:
        """The generation with this number, if it is still in this state. None otherwise."""
        generation = self.generations.get(number)
        if generation is None or generation.state != state:
            return None
        return generation

    # Requests

    def _model_for(self, ticket: int, name: str) -> Model | None:
        """The model for a new request. If there is no such model, refuses the request and returns None."""
        if ticket in self._leases or ticket in self._waiting:
            raise ValueError(f"ticket {ticket} is in use")
        model = self.models.get(name)
        if self._is_ending:
            self._refuse(ticket, "shutting_down", _ENDING)
        elif model is None:
            self._refuse(ticket, "removed", _removed(name))
        else:
            return model
        return None

    def _enqueue(self, ticket: int, model: Model, queue: dict[int, float], now: float) -> list[Action]:
        was_waited_for = model.num_waiting > 0
        queue[ticket] = now
        self._waiting[ticket] = model
        if model.current is not None and model.current.state == "draining":
            self._drain_generation(model.current, now)
        # A further request changes no decision. A load may: it ends the back-off.
        if was_waited_for and queue is model.waiting:
            return self._take_actions()
        return self._decide(now)

    def _end_lease(self, ticket: int, generation: ModelProcess, now: float) -> list[Action]:
        generation.leases.remove(ticket)
        generation.holds.discard(ticket)
        generation.idle_since_s = now
        self._admit_waiting(generation.model)
        if generation.state == "draining":
            self._drain_generation(generation, now)
        self._rest_if_idle(generation, now)
        return self._take_actions() if generation.is_kept else self._decide(now)

    def _cancel_sleep(self, model: Model) -> None:
        """Keeps the model awake for a new request if its sleep has not begun."""
        if model.current is not None and model.current.has_sleep_pending:
            model.current.cancel_rest()
            self._admit_waiting(model)

    def _rest_if_idle(self, generation: ModelProcess, now: float) -> None:
        if generation.has_sleep_pending and not generation.num_requests:
            self._fall_asleep(generation, now)

    def _admit_waiting(self, model: Model) -> None:
        while model.loads and model.is_admitting:
            self._admit_first(model.loads, model)
        while model.waiting and model.has_free_lease:
            self._admit_first(model.waiting, model)

    def _admit_first(self, queue: OrderedDict[int, float], model: Model) -> None:
        ticket, _ = queue.popitem(last=False)
        del self._waiting[ticket]
        self._admit(ticket, model)

    def _admit(self, ticket: int, model: Model) -> None:
        assert model.current is not None
        model.current.leases.add(ticket)
        self._leases[ticket] = model.current
        self._actions.append(Admit(ticket, model.current.number))

    def _refuse_waiting(self, model: Model, kind: RefusalKind, reason: str, retry_after_s: int | None = None) -> None:
        for queue in (model.loads, model.waiting):
            for ticket in queue:
                del self._waiting[ticket]
                self._refuse(ticket, kind, reason, retry_after_s)
            queue.clear()

    def _refuse_late(self, model: Model, now: float) -> None:
        max_wait_s = self._limits.max_wait_s
        while (end_s := model.patience_end_s(max_wait_s)) is not None and end_s <= now:
            ticket, _ = model.waiting.popitem(last=False)
            del self._waiting[ticket]
            text = f"{model.name} was not ready within {max_wait_s:g} s (--max-wait)"
            reason = f"{text}: {model.outcome.failure}" if model.outcome.has_failed else f"{text}."
            self._refuse(ticket, "failed", reason, model.retry_after_s(now))

    def _refuse(self, ticket: int, kind: RefusalKind, reason: str, retry_after_s: int | None = None) -> None:
        self._actions.append(Refuse(ticket, kind, reason, retry_after_s))

    # Processes

    def _change(self, model: Model, rules: ModelRules, now: float) -> None:
        """Handles a changed entry that needs a new process."""
        model.replace(rules, now)
        if model.next is not None:
            self._drain_generation(model.next, now)
            model.next = None
        if self._can_start_beside(model, now):
            model.next = self._start(model, now)
        elif model.current is not None:
            self._drain_generation(model.current, now)

    def _can_start_beside(self, model: Model, now: float) -> bool:
        """Whether the new process of a changed model can start beside the old one, and no model waits."""
        if self._is_ending:
            return False
        if model.current is None or model.current.state != "ready" or model.current.has_crashed:
            return False
        if any(other.is_hungry for other in self.models.values()):
            return False
        return self._plan(self._read_free(), now).has_room(model)

    def _start(self, model: Model, now: float) -> ModelProcess:
        generation = ModelProcess(next(self._numbers), model, now)
        self.generations[generation.number] = generation
        model.num_starts += 1
        model.short_since_s = None
        self._actions.append(Start(generation.number, model.name))
        return generation

    def _drain(self, model: Model, now: float) -> None:
        """Stops the model's processes after their leases. From now on they admit no requests."""
        model.next = None
        for generation in self.generations.values():
            if generation.model is model:
                self._drain_generation(generation, now)

    def _drain_generation(self, generation: ModelProcess, now: float) -> None:
        generation.begin_drain(now)
        if not generation.is_kept and not generation.is_stopping:
            generation.is_stopping = True
            self._actions.append(Stop(generation.number))

    def _fall_asleep(self, generation: ModelProcess, now: float) -> None:
        """Puts a process without requests to sleep, because it is idle or the user has requested it."""
        level = self._plan(self._read_free(), now).level_for(generation)
        if generation.levels and not level:
            generation.outcome = Outcome("could not sleep", "The machine's memory has no room for its weights.")
        self._make_room(Victim(generation, level), now)

    def _make_room(self, victim: Victim, now: float) -> None:
        process, level = victim
        if not level:
            self._drain_generation(process, now)
            return
        process.begin_rest(now, level)
        self._actions.append(Sleep(process.number, level))

    def _begin_settling(self, now: float) -> None:
        self._settled_s = now + min(_SETTLE_S, self._limits.memory_wait_s)

    def _note_end(self, last: ModelProcess, reason: str | None, now: float, *, is_lasting: bool) -> None:
        """Notes that the model's current process has ended, and that no other process replaces it."""
        model = last.model
        model.note_end(last, reason, now, is_lasting=is_lasting)
        is_given_up = model.outcome.kind == "given up"
        if is_given_up:
            self._actions.append(GiveUp(model.name))
        if is_given_up or (last.state == "starting" and not model.will_restart):
            self._refuse_waiting(model, "failed", model.outcome.failure, model.retry_after_s(now))

    # Decision

    def _decide(self, now: float) -> list[Action]:
        """Starts waiting models, and stops other models for them. Called at the end of most events."""
        read_free = cache(self._read_free)
        has_changed = True
        # Repeated, because what is started, stopped or refused changes what the next plan may count on. Each
        # repetition has fewer waiting models or processes, so it ends.
        while has_changed:
            self._due_s = None
            hungry = [] if self._is_ending else self._collect_hungry(now)
            # A claim ends with the wait of its model. This comes before the plan, which counts the others.
            self._release_claims({model.name for model in hungry})
            has_changed = bool(hungry) and self._place(hungry, read_free(), now)
        return self._take_actions()

    def _collect_hungry(self, now: float) -> list[Model]:
        """The models that wait for a start. Notes when a back-off ends.

        The longest wait comes first, which bound 4 needs.
        """
        hungry = []
        for model in self.models.values():
            if model.is_hungry:
                if model.is_backing_off(now):
                    self._note_due(model.retry_s)
                else:
                    hungry.append(model)
            else:
                model.short_since_s = None
        return sorted(hungry, key=lambda model: model.hungry_since_s)

    def _release_claims(self, hungry: Collection[str]) -> None:
        for generation in self.generations.values():
            if generation.claimed_by is not None and generation.claimed_by not in hungry:
                generation.claimed_by = None
                self._admit_waiting(generation.model)

    def _place(self, hungry: Iterable[Model], free: Need | None, now: float) -> bool:
        """Places all waiting models in one plan. Returns whether a model was started, stopped or refused."""
        plan, has_changed = self._plan(free, now), False
        for model in hungry:
            if not model.is_hungry:  # its sleeping process was stopped for an earlier model
                continue
            placement = plan.place(model)
            self._carry_out(model, placement, now)
            has_changed |= placement.kind in ("start", "stop", "refuse")
        self._note_due(plan.due_s)
        return has_changed

    def _plan(self, free: Need | None, now: float) -> StartPlan:
        return StartPlan(self.generations.values(), self._limits, free, now, self._settled_s)

    def _carry_out(self, model: Model, placement: Placement, now: float) -> None:
        # Only 5 of the plan's decisions lets memory_wait_s run. Each other one ends this time.
        is_short = placement.kind == "short"
        if not is_short or model.short_since_s is None:
            model.short_since_s = now if is_short else None
        # 2 (`blocked`) and 5 (`short`) do nothing else: the next event or tick places the model anew.
        match placement.kind:
            case "start":  # 3
                if (sleeper := model.sleeper) is not None:
                    sleeper.begin_wake(now)
                    self._actions.append(Wake(sleeper.number))
                else:
                    model.current = self._start(model, now)
            case "stop":  # 6, and 1 for a sleeping process
                for victim in placement.victims:
                    self._make_room(victim, now)
            case "wait":  # 3, 4, 6. Only 6 names victims
                for victim in placement.victims:
                    victim.process.claimed_by = model.name
            case "refuse":  # 1, and 5 after memory_wait_s
                if model.sleeper is not None:
                    model.sleeper.idle_since_s = now
                else:
                    model.give_up()
                retry_after_s = max(1, round(self._limits.memory_wait_s))
                self._refuse_waiting(model, "no_room", placement.text, retry_after_s)

    def _note_due(self, time_s: float | None) -> None:
        if time_s is not None and (self._due_s is None or time_s < self._due_s):
            self._due_s = time_s

    def _take_actions(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions


_ENDING = "The server is shutting down."


def _removed(name: str) -> str:
    return f"The model `{name}` does not exist."


def _overloaded(model: Model) -> str:
    if model.is_full:
        return f"{model.name} has {model.rules.concurrency} requests already (concurrencyLimit)."
    return f"{len(model.waiting)} requests wait for {model.name} already (--max-waiting)."
