"""Tests each rule of the scheduler in a story of a few events. The clock is a number.

`test_scheduler_properties.py` tests the rules for every state: bounds, minimum stays and leases.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from router.scheduling.scheduler import ModelScheduler
from router.scheduling.terms import (
    Action,
    Admit,
    GiveUp,
    ModelRules,
    Need,
    Refuse,
    SchedulerLimits,
    Sleep,
    Start,
    Stop,
    Wake,
)
from tests.support.growth import growth

GIB = 1 << 30


class Story:
    """A scheduler, and the time and memory of its machine.

    A process has the name of its model, such as `a`. If another process of the model runs when it starts, its
    name is `a'`.
    """

    def __init__(self, free: int | None = None, **limits: float) -> None:
        self.now = 0.0
        self.free, self.free_gpu = free, 0
        values = {"max_wait_s": 10.0, "min_stay_s": 2.0, **limits}
        self.scheduler = ModelScheduler(SchedulerLimits(**values), self._read_free)  # type: ignore[arg-type]
        self.rules: dict[str, ModelRules] = {}
        self.starts: list[str] = []
        self.names: dict[int, str] = {}
        """Generation -> name of each started process. A name means the latest process with this name."""
        self.running: set[int] = set()
        self.readings = 0

    def model(self, name: str, gib: int = 0, excludes: str = "", asleep: str = "", **rules: object) -> None:
        """`asleep=1:2+1`: at level 1, it needs 2 GiB of the machine's memory and 1 GiB of the GPU's."""
        excluded = frozenset(excludes.split(",") if excludes else ())
        levels = {}
        for each in filter(None, asleep.split(",")):
            level, _, needs = each.partition(":")
            ram, _, gpu = needs.partition("+")
            levels[int(level)] = Need(int(ram) * GIB, int(gpu or 0) * GIB)
        need = Need(gib * GIB, int(rules.pop("gpu", 0)) * GIB)  # type: ignore[call-overload]
        self.rules[name] = ModelRules(need=need, excludes=excluded, asleep=levels, **rules)  # type: ignore[arg-type]
        self.set_models()

    def forget(self, name: str) -> None:
        del self.rules[name]

    def free_is(self, gib: int, gpu: int = 0) -> None:
        self.free, self.free_gpu = gib * GIB, gpu * GIB

    def reload(self, *changed: str) -> list[Action]:
        return self.set_models(restart=changed)

    def set_models(self, restart: tuple[str, ...] = ()) -> list[Action]:
        return self._act(self.scheduler.set_models(self.rules, self.now, restart))

    def arrive(self, ticket: int, model: str) -> list[Action]:
        return self._act(self.scheduler.arrive(ticket, model, self.now))

    def load(self, ticket: int, model: str) -> list[Action]:
        return self._act(self.scheduler.load(ticket, model, self.now))

    def leave(self, ticket: int) -> list[Action]:
        return self._act(self.scheduler.leave(ticket, self.now))

    def hold(self, ticket: int, process: str) -> list[Action]:
        self.scheduler.hold(ticket, self.number(process))
        return []

    def ready(self, process: str, after_s: float = 0.0) -> list[Action]:
        self.now += after_s
        return self._act(self.scheduler.became_ready(self.number(process), self.now))

    def ended(
        self, process: str, reason: str | None = None, after_s: float = 0.0, is_lasting: bool = False
    ) -> list[Action]:
        self.now += after_s
        self.running.discard(self.number(process))
        return self._act(self.scheduler.ended(self.number(process), reason, self.now, is_lasting=is_lasting))

    def asleep(self, process: str) -> list[Action]:
        return self._act(self.scheduler.fell_asleep(self.number(process), self.now))

    def stays_awake(self, process: str) -> list[Action]:
        return self._act(self.scheduler.stayed_awake(self.number(process), "no memory", self.now))

    def woke(self, process: str) -> list[Action]:
        return self._act(self.scheduler.woke(self.number(process), self.now))

    def sleep(self, model: str) -> list[Action]:
        return self._act(self.scheduler.sleep(model, self.now))

    def unload(self, model: str) -> list[Action]:
        return self._act(self.scheduler.unload(model, self.now))

    def measured(self, process: str, gib: int, gpu: int = 0) -> list[Action]:
        return self._act(self.scheduler.measured(self.number(process), Need(gib * GIB, gpu * GIB), self.now))

    def drain(self) -> list[Action]:
        return self._act(self.scheduler.drain(self.now))

    def run(self, name: str, ticket: int) -> None:
        """Starts a model until it is ready and has one lease."""
        self.arrive(ticket, name)
        assert ticket in [action.ticket for action in self.ready(name, 1.0) if isinstance(action, Admit)]

    def wait(self, seconds: float) -> list[Action]:
        """Lets time pass, with every tick that is due."""
        end_s, actions = self.now + seconds, list[Action]()
        while (delay_s := self.scheduler.next_tick_s(self.now)) is not None and self.now + delay_s <= end_s:
            self.now += delay_s
            actions += self._act(self.scheduler.tick(self.now))
        self.now = end_s
        return actions

    def view(self, model: str) -> str:
        view = self.scheduler.view().get(model)
        if view is None:
            return "unknown"
        return f"{view.state} {view.num_running} leases {view.num_waiting} waiting {view.need.ram_bytes // GIB} GiB"

    def next_tick(self) -> str:
        return "none" if self.scheduler.next_tick_s(self.now) is None else "due"

    def number(self, process: str) -> int:
        """The latest generation with this name. 0 if there was none."""
        return max((number for number, name in self.names.items() if name == process), default=0)

    def words_of(self, action: Action) -> str:
        match action:
            case Start(number) | Stop(number) | Wake(number):
                return f"{type(action).__name__.lower()} {self.names[number]}"
            case Sleep(number, level):
                return f"sleep {self.names[number]} at {level}"
            case GiveUp(model):
                return f"give up {model}"
            case Admit(ticket):
                return f"admit {ticket}"
            case Refuse(ticket, kind):
                return f"refuse {ticket} {kind}"
        raise ValueError(action)

    def _act(self, actions: list[Action]) -> list[Action]:
        for action in actions:
            if isinstance(action, Start):
                self.starts.append(action.model)
                name = action.model
                while name in {self.names[number] for number in self.running}:
                    name += "'"
                self.names[action.generation] = name
                self.running.add(action.generation)
        return actions

    def _read_free(self) -> Need | None:
        self.readings += 1
        return None if self.free is None else Need(self.free, self.free_gpu)


STORIES = """
a request starts its model and is admitted when it is ready
budget=10 | a 6 | b 6
arrive 1 a > start a; arrive 2 a > nothing; ready a 1 > admit 1, admit 2; arrive 3 a > admit 3

a lease lasts from admission to the last byte, llama.cpp #28698
budget=10 | a 6 | b 6
arrive 1 a; arrive 2 b; ready a 5 > admit 1; wait 100 > nothing; leave 1 > stop a; ended a > start b

a client that leaves while it waits gives its place up, llama-swap's design.md
budget=10 | a 6 | b 6
run b 9; arrive 1 a; leave 1; leave 9; wait 60 > nothing

a client that leaves before readiness gives its place up
budget=10 | a 6 | b 6
arrive 1 a; leave 1; ready a 1; view a > ready 0 leases 0 waiting 6 GiB; wait 2; arrive 2 b > stop a

a client that leaves when admitted gives its place up
budget=10 | a 6 | b 6
arrive 1 a; ready a 1; leave 1; ready a 1; view a > ready 0 leases 0 waiting 6 GiB; wait 2; arrive 2 b > stop a

a ticket may leave twice or be unknown
budget=10 | a 6 | b 6
run a 1; leave 1; leave 1 > nothing; leave 77 > nothing

requests beyond the concurrency wait in order
| a concurrency=2
arrive 1 a; arrive 2 a; arrive 3 a; arrive 4 a; ready a > admit 1, admit 2; leave 3 > nothing; leave 1 > admit 4

a hold keeps the process from its end and counts for no limit of requests
max_running=1 | a concurrency=1 ttl_s=10 | b
run a 1; arrive 2 a; hold 3 a; leave 1 > admit 2; leave 2; wait 60 > nothing; arrive 4 b > nothing; wait 60 > nothing
leave 3 > stop a; hold 6 a; ended a > start b; hold 7 a; ready b > admit 4; leave 4 > nothing
leave 6 > nothing; leave 7 > nothing

a request ends a mere hold of its model's process, which another model waits for
max_running=1 | a | b
run a 1; hold 2 a; leave 1; arrive 3 b > nothing; wait 60 > nothing; arrive 4 a > stop a; ended a > start b

a request ends a mere hold of a process that drains, and a hold beside a request only with the request
| a
run a 1; hold 2 a; reload a > nothing; arrive 3 a > nothing; leave 1 > stop a; ended a > start a; ready a > admit 3
hold 4 a; leave 3; reload a > nothing; wait 60 > nothing; load 5 a > stop a

unload by hand ends a mere hold, and waits for a request
| a
run a 1; hold 2 a; unload a > nothing; leave 1 > stop a; ended a; run a 3; hold 4 a; leave 3; unload a > stop a

a hold keeps no model awake
| a asleep=1:1
run a 1; hold 2 a; sleep a > nothing; leave 1 > sleep a at 1; leave 2 > nothing; asleep a; arrive 3 a > wake a

requests beyond a concurrency that refuses get no place
| a concurrency=2 refuses_excess=1
arrive 1 a; arrive 2 a; arrive 3 a > refuse 3 overloaded; ready a > admit 1, admit 2; arrive 4 a > refuse 4 overloaded
leave 1; arrive 5 a > admit 5; load 6 a > admit 6

an idle model is stopped only if the sums say so, Ollama #13227
budget=12 | a 6 | b 6
run a 1; leave 1; wait 60; arrive 2 b > start b

two waiting models do not count on the same victim, llama.cpp #28443
budget=10 | a 5 | b 5 | c 5 | d 5
run a 1; run b 2; leave 1; leave 2; wait 10; arrive 3 c > stop a; arrive 4 d > stop b
ended b > start c; ended a > start d

two waiting models stop the streams of two victims
max_running=2 | a | b | c | d
run a 1; run b 2; arrive 3 c; arrive 4 d; wait 9; arrive 5 a > admit 5; arrive 6 b > admit 6
wait 1.1; arrive 7 a > nothing; arrive 8 b > nothing

a model that was stopped for another one waits behind it, though its waiters at its limit are older
max_running=1 | a concurrency=1 | b
arrive 1 a; arrive 2 a; arrive 3 a; ready a 1; arrive 4 b; wait 10.1; leave 1 > stop a; ended a > start b

a later small model does not take the room of an earlier large one
budget=10 | a 6 | large 10 | small 4
run a 1; arrive 2 large; arrive 3 small > nothing; wait 3; leave 1 > stop a; ended a > start large

the victim is the one that costs least if both are idle for equally long
max_running=2 | slow | fast | new
arrive 1 slow; ready slow 60; arrive 2 fast; ready fast 1; leave 1; leave 2; wait 10; arrive 3 new > stop fast

of equal victims the one that was used longest ago is stopped
max_running=2 | a | b | c
run a 1; run b 2; leave 2; wait 5; leave 1; wait 5; arrive 3 c > stop b

no more models are stopped than are needed: a cheap small one does not suffice
budget=10 | small 2 | large 8 | new 7
arrive 1 small; ready small 1; arrive 2 large; ready large 9; leave 1; leave 2; wait 5; arrive 3 new > stop large

waiters of a ready model are served before a swap, llama-swap #612: A B A A C becomes A A A B C
max_running=1 | a | b | c
arrive 1 a; arrive 2 b; arrive 3 a; arrive 4 a; arrive 5 c; ready a > admit 1, admit 3, admit 4
wait 3; leave 1 > nothing; leave 3 > nothing; leave 4 > stop a; ended a > start b

after max_wait new requests for the victim wait behind the swap
max_running=1 max_wait_s=10 | a | b
run a 1; arrive 2 b; wait 9.9; arrive 3 a > admit 3; wait 0.2; arrive 4 a > nothing
leave 1; leave 3 > stop a; ended a > start b; ready b 1 > admit 2
wait 2; leave 2 > stop b; ended b > start a; ready a 1 > admit 4

a victim admits again if nobody waits for its room
max_running=1 | a | b
run a 1; arrive 2 b; wait 10.1; arrive 3 a > nothing; leave 2 > admit 3

a victim that was claimed by a later model (b) goes to the first (c), found by a random world
max_running=1 max_wait_s=5 | a | b | c
run a 1; arrive 2 b; wait 1; arrive 3 c; wait 4.5; arrive 4 b; leave 2; leave 1 > stop a; ended a > start c

an excluded model is stopped first
| a | b excludes=a
run a 1; wait 5; arrive 2 b > nothing; leave 1 > stop a; ended a > start b

exclusion has a direction
| a | b excludes=a
run b 1; arrive 2 a > start a

models that exclude each other start one after the other
| a excludes=b | b excludes=a
arrive 1 a > start a; arrive 2 b > nothing; ready a; wait 2; leave 1 > stop a; ended a > start b

a model waits for an earlier one that excludes it, else that one would wait for it, too
| a | c | b excludes=a,c
run a 1; arrive 2 b; wait 0.1; arrive 3 c > nothing; wait 2; leave 1 > stop a; ended a > start b, start c

a start waits until the memory is really free, FMA #709
free=10 budget=10 | a 6 | b 6
run a 1; free_is 4; wait 5; arrive 2 b; leave 1 > stop a; ended a > nothing; wait 1.5 > nothing
free_is 10; wait 0.2 > start b

a model is stopped if other programs have taken the memory, though the budget has room
free=10 budget=100 | a 6 | b 6
run a 1; leave 1; free_is 4; wait 5; arrive 2 b > stop a

late memory of one model does not stop another
free=20 | a 6 | b 6 | c 10
run a 1; run b 2; leave 1; leave 2; free_is 8; wait 5; arrive 3 c > stop a; ended a > nothing; wait 1 > nothing
free_is 14; wait 0.2 > start c

memory that comes back late is for the model that has waited for it
free=10 | a 6 | large 10 | small 4
run a 1; leave 1; free_is 4; wait 5; arrive 2 large > stop a; ended a > nothing; arrive 3 small > nothing
free_is 10; wait 0.2 > start large

a start that lacks memory begins when another program gives it back
free=5 | a 6
arrive 1 a > nothing; free_is 6; wait 0.2 > start a

memory that another program gives back ends the wait for a busy model
free=10 | a 6 | b 6
run a 1; free_is 4; arrive 2 b > nothing; free_is 6; wait 1.1 > start b

a start is not refused while another model takes its memory
free=10 | a 4 pinned=1 | b 6
arrive 1 a > start a; free_is 6; arrive 2 b > nothing; wait 60 > nothing; ready a > admit 1, start b

memory that a starting model has not taken is not free, until another program ends
free=10 | a 6 | b 6
arrive 1 a > start a; arrive 2 b > nothing; free_is 9; wait 5 > nothing; free_is 12; wait 1.1 > start b

memory that a stopped start may take before its end is not free, found by a random world
free=10 | a 6 | b 6
arrive 1 a; leave 1; unload a > stop a; arrive 2 b > nothing; wait 5 > nothing; ended a > start b

the most that was measured replaces the estimate, llama-swap #158
budget=10 | a 8 | b 6
run a 1; measured a 4; arrive 2 b > start b; measured a 5; measured a 3; view a > ready 1 leases 0 waiting 5 GiB

a model that grew above the budget runs alone
budget=10 | a 8
run a 1; measured a 11; leave 1; unload a; ended a; arrive 2 a > start a

a model that ends by itself is started again for the one that waited
| a concurrency=1
run a 1; arrive 2 a; wait 9; ended a killed > nothing; view a > failed 0 leases 1 waiting 0 GiB
arrive 3 a > refuse 3 failed; wait 1 > start a; ready a > admit 2

a failed start answers all waiters and harms no other model: llama-swap #92, FMA #444, ray #63065
budget=10 | a 6 | b 6
arrive 1 a; arrive 2 a; arrive 3 b; ended a broken > refuse 1 failed, refuse 2 failed, start b
arrive 4 a > refuse 4 failed

a model that dies soon after each start pauses longer
| a
run a 1; ended a killed; arrive 2 a > refuse 2 failed; wait 1; run a 3; ended a killed; wait 1.9
arrive 4 a > refuse 4 failed; wait 0.1; run a 5; ended a killed; wait 3.9; arrive 6 a > refuse 6 failed; wait 0.1
arrive 7 a > start a

a model that ends by itself after ten seconds is started again without a pause
| a
run a 1; wait 10; ended a killed > nothing; arrive 2 a > start a

a model with a restart limit starts again by itself, and its requests wait, also during a pause
| a restart_limit=3
load 1 a > start a; ready a > admit 1; leave 1 > nothing; wait 60 > nothing; ended a killed > start a
arrive 2 a > nothing; ended a killed > nothing; arrive 3 a > nothing; wait 1 > start a; ready a > admit 2, admit 3

a model with a restart limit is given up after so many failures in a row, and is not started again
| a restart_limit=2
load 1 a > start a; ended a killed > nothing; wait 1 > start a; ended a killed > give up a, refuse 1 failed
wait 600 > nothing

failures before ten good seconds do not count towards the restart limit
| a restart_limit=2
load 1 a; ended a killed; wait 1; ready a > admit 1; leave 1; wait 10; ended a killed > start a
ready a; wait 9; ended a killed > give up a

a failure that would come again is the last one
| a restart_limit=5
load 1 a; arrive 2 a; ended a usage is_lasting=1 > give up a, refuse 1 failed, refuse 2 failed

requests for a model with a restart limit wait for max_wait_s, loads as long as it takes
max_wait_s=5 | a restart_limit=9
load 1 a > start a; arrive 2 a; wait 4; arrive 3 a; wait 1 > refuse 2 failed; wait 4 > refuse 3 failed
ready a > admit 1

a model with a restart limit that was stopped stays so until a request comes
| a restart_limit=9 ttl_s=10
run a 1; leave 1; wait 10 > stop a; ended a > nothing; wait 600 > nothing; arrive 2 a > start a

ttl counts from the end of the last request and never during a start, llama-swap #289
| a ttl_s=10
arrive 1 a; wait 60 > nothing; ready a; wait 60 > nothing; leave 1; wait 9.9 > nothing
arrive 2 a; leave 2; wait 9.9 > nothing; wait 0.2 > stop a

unload waits for leases, and requests that wait start the model again
| a
run a 1; unload a > nothing; view a > draining 1 leases 0 waiting 0 GiB; arrive 2 a > nothing; unload a > nothing
leave 1 > stop a; ended a > start a; ready a > admit 2

a loaded model is an ordinary victim, LM Studio #2051
budget=10 | a 6 | b 6
load 1 a; ready a 1 > admit 1; leave 1; wait 2; arrive 2 b > stop a

a load is not delayed by limits of requests
max_waiting=1 | a concurrency=1
arrive 1 a; load 2 a > nothing; ready a > admit 2; leave 2 > admit 1; load 3 a > admit 3

a reload touches only what changed, llama-swap #281
| same | changed | removed
run same 1; run changed 2; run removed 3; forget removed; model added; unload changed; reload changed > nothing
view same > ready 1 leases 0 waiting 0 GiB; view changed > draining 1 leases 0 waiting 0 GiB
view removed > draining 1 leases 0 waiting 0 GiB; view added > stopped 0 leases 0 waiting 0 GiB
arrive 11 same > admit 11; arrive 12 changed > nothing; arrive 13 removed > refuse 13 removed
leave 2 > stop changed; ended changed > start changed; leave 3 > stop removed; ended removed > nothing
view removed > unknown

a removed model refuses its waiters and may come back before its process ends
| a
arrive 1 a; forget a; reload > refuse 1 removed, stop a; model a; reload; arrive 2 a > nothing; ended a > start a

a changed model with room starts beside the old process and takes over; the old one ends after its leases
budget=12 | a 6 may_overlap=1
run a 1; reload a > start a'; arrive 2 a > admit 2; view a > ready 2 leases 0 waiting 12 GiB
ready a' > nothing; arrive 3 a > admit 3; leave 1; leave 2 > stop a; ended a; leave 3 > nothing
view a > ready 0 leases 0 waiting 6 GiB

a changed model without room for two ends after its leases
budget=11 | a 6 may_overlap=1
run a 1; reload a > nothing; arrive 2 a > nothing; leave 1 > stop a; ended a > start a

two processes of a changed model are two of max_running
max_running=1 | a may_overlap=1
run a 1; reload a > nothing; leave 1 > stop a

a changed model does not start beside the old process while another one waits for this room
budget=12 | a 6 may_overlap=1 | b 12
run a 1; arrive 2 b; reload a > nothing; leave 1 > stop a

a changed model whose new process fails goes on with the old one
| a may_overlap=1
run a 1; reload a > start a'; ended a' broken; arrive 2 a > admit 2; leave 1; leave 2; unload a > stop a

a changed model whose old process dies waits for the new one
| a may_overlap=1
run a 1; reload a > start a'; ended a killed; arrive 2 a > nothing; ready a' > admit 2

unload stops both processes of a changed model
| a may_overlap=1
run a 1; leave 1; reload a > start a'; unload a > stop a, stop a'; ended a; ended a' > nothing
view a > stopped 0 leases 0 waiting 0 GiB

a model that is changed again while a process starts beside the old one begins anew
budget=17 | a 6 may_overlap=1
run a 1; reload a > start a'; reload a > stop a'; arrive 2 a > nothing; leave 1 > stop a; ended a' > nothing
ended a > start a

a model that is changed again while a process starts beside the old one may have three processes
budget=18 | a 6 may_overlap=1
run a 1; reload a > start a'; reload a > stop a', start a''; ended a'; ready a'' > nothing; leave 1 > stop a

a process that was replaced keeps no later one from its start, but a command waits for its end
max_running=2 | a may_overlap=1
run a 1; reload a > start a'; ready a' > nothing; ended a' killed; arrive 2 a > refuse 2 failed; wait 1
arrive 3 a > start a'; ready a' > admit 3; model a; reload a > nothing; leave 3 > stop a'; arrive 4 a > nothing
ended a' > nothing; leave 1 > stop a; ended a > start a

a command that is changed ends before the new one starts
| a
run a 1; reload a > nothing; leave 1 > stop a

a changed model has no pause, as its file was repaired
| a
arrive 1 a; ended a broken; reload a; arrive 2 a > start a

models that sleep change places with nothing lost, llama-swap #941
max_running=1 | a on_swap=sleep asleep=1:1 | b on_swap=sleep asleep=1:1
run a 1; wait 5; arrive 2 b; wait 1; leave 1 > sleep a at 1; arrive 3 a > nothing; asleep a > start b
ready b > admit 2; wait 5; leave 2 > sleep b at 1; asleep b > wake a; woke a > admit 3
arrive 4 b > nothing; wait 5; leave 3 > sleep a at 1; asleep a > wake b; woke b > admit 4

a model that should sleep is stopped if it needs too much asleep
budget=10 | a 6 on_swap=sleep asleep=1:5 | b 6
run a 1; leave 1; wait 5; arrive 2 b > stop a; ended a > start b

level 1 needs memory for the weights, else level 2 drops them
budget=10 | a 2 on_swap=sleep asleep=1:7,2:2 | b 2 excludes=a | c 2 excludes=a
run a 1; leave 1; wait 5; arrive 2 b > sleep a at 1; asleep a > start b; view a > asleep 0 leases 0 waiting 7 GiB
ready b > admit 2; load 3 a > wake a; woke a > admit 3; leave 3; model d 3; run d 4; wait 5; arrive 5 c > sleep a at 2

sleep_level 1 without memory for the weights stops the model
budget=10 | a 2 on_swap=sleep asleep=1:7 | b 4 excludes=a
run a 1; leave 1; wait 5; arrive 2 b > stop a

the sleeping model that was used longest ago is stopped before any that is awake
budget=10 | a 6 on_swap=sleep asleep=1:2 | b 6 on_swap=sleep asleep=1:2 | c 4 on_swap=sleep asleep=1:2 | d 4
run a 1; leave 1; wait 5; arrive 2 b > sleep a at 1; asleep a > start b; ready b > admit 2; leave 2; wait 5
arrive 3 c > stop a; ended a > start c; ready c > admit 3

the budget holds while a model wakes: its memory awake and asleep count
budget=10 | a 3 on_swap=sleep asleep=1:6 | b 4
run a 1; leave 1; sleep a > sleep a at 1; asleep a > nothing; arrive 2 b > start b; ready b > admit 2
arrive 3 a > wake a; view a > waking 0 leases 1 waiting 6 GiB; woke a > admit 3; view a > ready 1 leases 0 waiting 3 GiB

a GPU is never given twice: the one that falls asleep has it until it sleeps
free=100 max_wait_s=1 | a 2 gpu=6 on_swap=sleep asleep=1:4+1 | b 2 gpu=6 on_swap=sleep asleep=1:4+1
free_is 100 gpu=8; run a 1; free_is 98 gpu=2; leave 1; wait 5; arrive 2 b > sleep a at 1; wait 1 > nothing
free_is 96 gpu=7; asleep a > start b; ready b; free_is 94 gpu=1; wait 5; leave 2; arrive 3 a > sleep b at 1
free_is 92 gpu=6; asleep b > wake a

what was measured asleep replaces the estimate
budget=10 | a 6 on_swap=sleep asleep=1:4 | b 7
run a 1; leave 1; sleep a; asleep a; measured a 2; view a > asleep 0 leases 0 waiting 2 GiB; arrive 2 b > start b

idle sleep gives the memory back first, ttl ends the process later, by one clock
| a idle_sleep_s=5 ttl_s=60 asleep=1:1
run a 1; wait 10; leave 1; wait 4.9 > nothing; wait 0.2 > sleep a at 1; asleep a; wait 54 > nothing; wait 1 > stop a

idle sleep stops a model that cannot sleep, and never a pinned one
| a idle_sleep_s=5 | b idle_sleep_s=5 pinned=1 asleep=1:1
run a 1; run b 2; leave 1; leave 2; wait 60 > stop a

a request that comes while a model falls asleep wakes it
| a idle_sleep_s=5 asleep=1:1
run a 1; leave 1; wait 5 > sleep a at 1; arrive 2 a > nothing; asleep a > wake a; woke a > admit 2

a request or a load cancels a sleep that has not begun
max_running=1 | a asleep=1:1 concurrency=2 | b
run a 1; sleep a > nothing; arrive 2 a > admit 2; view a > ready 2 leases 0 waiting 0 GiB; sleep a > nothing
load 3 a > admit 3; leave 3; arrive 4 a > nothing; sleep a > nothing; view a > ready 2 leases 1 waiting 0 GiB
leave 1 > admit 4; sleep a; leave 2; unload a; arrive 5 a > nothing; leave 4 > stop a; ended a > start a

sleep by hand waits for leases; load wakes, unload stops also a sleeping one
| a asleep=1:1
run a 1; sleep a > nothing; view a > falling asleep 1 leases 0 waiting 0 GiB; leave 1 > sleep a at 1; asleep a
load 2 a > wake a; woke a > admit 2; leave 2; sleep a > sleep a at 1; asleep a; unload a > stop a; ended a > nothing
arrive 3 a > start a

a model that does not wake is started cold for those that wait, without a pause
| a restart_limit=2 asleep=1:1
run a 1; leave 1; sleep a; asleep a; arrive 2 a > wake a; ended a late > start a; ready a > admit 2

a model that cannot fall asleep is stopped instead
max_running=1 | a on_swap=sleep asleep=1:1 | b
run a 1; leave 1; wait 5; arrive 2 b > sleep a at 1; stays_awake a > stop a; ended a > start b

a model that dies asleep is started by the next request alone, without a pause
| a asleep=1:1
run a 1; leave 1; sleep a; asleep a; ended a killed > nothing; view a > failed 0 leases 0 waiting 0 GiB
wait 60 > nothing; arrive 2 a > start a

a model with a restart limit that was unloaded after its failure starts at a request alone
| a restart_limit=9
load 1 a; leave 1; ended a broken; view a > failed 0 leases 0 waiting 0 GiB; unload a > nothing
view a > stopped 0 leases 0 waiting 0 GiB; wait 600 > nothing; arrive 2 a > start a

a model that dies soon after each time that it wakes is given up
| a restart_limit=2 asleep=1:1
run a 1; leave 1; sleep a; asleep a; ended a killed > start a; ready a; sleep a; ended a killed > give up a

a sleeping model whose entry changed is stopped; one that stays sleeps on
| a asleep=1:1 may_overlap=1 | b asleep=1:1
run a 1; run b 2; leave 1; leave 2; sleep a; asleep a; sleep b; asleep b; reload a > stop a; ended a > nothing
arrive 3 a > start a; forget b; reload > stop b

a model with a process of the changed entry beside it does not fall asleep
max_running=2 | a may_overlap=1 on_swap=sleep asleep=1:1 idle_sleep_s=5 | b
run a 1; reload a > start a'; leave 1; wait 10 > nothing; sleep a > nothing; arrive 2 b > stop a

the end of the router stops sleeping models
| a asleep=1:1 | b asleep=1:1
run a 1; run b 2; leave 1; leave 2; sleep a; asleep a; sleep b; drain > stop a, stop b; asleep b > nothing

drain refuses what waits and stops all after their leases
budget=10 | a 6 | b 6
run a 1; arrive 2 b; drain > refuse 2 shutting_down; arrive 3 a > refuse 3 shutting_down
leave 1 > stop a; ended a > nothing; next_tick > none
"""


def begin(setup: str) -> Story:
    """Begins a story. `setup` has the limits and, after each bar, a model with its GiB and rules."""
    limits, *models = setup.split("|")
    values = dict(read_word(word) for word in limits.split())
    if "budget" in values:
        values["memory_budget_bytes"] = values.pop("budget") * GIB
    story = Story(values.pop("free") * GIB if "free" in values else None, **values)
    for model in models:
        happen(story, f"model {model}")
    return story


def read_word(word: str) -> tuple[str, Any]:
    """Parses `NAME=VALUE` or `VALUE` (then the name is empty). Converts values that are numbers."""
    name, _, value = word.rpartition("=")
    if not value.replace(".", "").isdigit():
        return name, value
    return name, float(value) if "." in value else int(value)


def happen(story: Story, step: str) -> str:
    """Calls the story's method that a step names. Returns the actions that followed as text."""
    method, *words = step.split()
    arguments = [read_word(word) for word in words]
    unnamed = [value for name, value in arguments if not name]
    followed = getattr(story, method)(*unnamed, **{name: value for name, value in arguments if name})
    return followed if isinstance(followed, str) else ", ".join(map(story.words_of, followed or [])) or "nothing"


@pytest.mark.parametrize("text", [pytest.param(text, id=text.split("\n")[0]) for text in STORIES.strip().split("\n\n")])
def test_story(text):
    """Each step has exactly the actions after its `>`. A step without `>` may have any actions."""
    _, setup, *lines = text.split("\n")
    story = begin(setup)
    for number, step in enumerate("; ".join(lines).split("; "), start=1):
        words, _, expected = step.partition(" > ")
        followed = happen(story, words)
        assert followed == (expected or followed), f"step {number}: {step}"


# What needs more than the words of a story


@pytest.fixture
def one_fits() -> Story:
    """A story with models a and b, and with room for one of them."""
    story = Story(memory_budget_bytes=10 * GIB)
    story.model("a", 6)
    story.model("b", 6)
    return story


def refusals(actions: list[Action]) -> dict[int, str]:
    return {action.ticket: action.kind for action in actions if isinstance(action, Refuse)}


def test_requests_above_max_waiting_are_refused(one_fits):
    story = Story(max_waiting=2)
    story.model("a")
    story.arrive(1, "a")
    story.arrive(2, "a")
    (refusal,) = story.arrive(3, "a")
    assert isinstance(refusal, Refuse)
    assert (refusal.kind, refusal.retry_after_s) == ("overloaded", 1)
    assert "--max-waiting" in refusal.reason


def test_a_pinned_model_is_no_victim_and_the_refusal_names_it(one_fits):
    one_fits.model("a", 6, pinned=True, ttl_s=1.0)
    one_fits.run("a", 1)
    one_fits.leave(1)
    one_fits.wait(60.0)
    (refusal,) = one_fits.arrive(2, "b")
    assert isinstance(refusal, Refuse)
    assert refusal.kind == "no_room"
    assert refusal.reason == (
        "b needs 6.0 GiB, which the budget of 10.0 GiB does not have beside the pinned a (6.0 GiB) (--memory-budget)."
    )


@pytest.mark.parametrize(("gap_s", "most_starts"), [(0.0, 2 * (200 / 10 + 1)), (0.5, 2 * (200 / 2 + 1))])
def test_streams_for_two_models_swap_seldom_and_nobody_starves(gap_s, most_starts):
    """Both models get requests of 0.4 s for 200 s. There is room for one model. A swap takes 0.5 s."""
    max_wait_s, lease_s, start_s = 10.0, 0.4, 0.5
    story = Story(max_running=1, max_wait_s=max_wait_s, max_waiting=10_000)
    story.model("a")
    story.model("b")
    story.now = 0.0
    agenda: list[tuple[float, int, Callable[[], list[Action]]]] = []
    arrived, longest_s, number, next_s = dict[int, float](), 0.0, 0, 0.0

    def apply(actions: list[Action]) -> None:
        nonlocal longest_s
        for action in actions:
            if isinstance(action, Start):
                agenda.append((story.now + start_s / 2, len(agenda), partial(story.ready, action.model)))
            elif isinstance(action, Stop):
                agenda.append(
                    (story.now + start_s / 2, len(agenda), partial(story.ended, story.names[action.generation]))
                )
            elif isinstance(action, Admit):
                longest_s = max(longest_s, story.now - arrived[action.ticket])
                agenda.append((story.now + lease_s, len(agenda), partial(story.leave, action.ticket)))
            assert not isinstance(action, Refuse)

    while story.now < 200.0:
        apply(story.wait(0.0))
        if story.now >= next_s:
            for model in ("a", "b"):
                number += 1
                arrived[number] = story.now
                apply(story.arrive(number, model))
            next_s = story.now + lease_s / 2 + gap_s
        due = [item for item in agenda if item[0] <= story.now]
        agenda = [item for item in agenda if item[0] > story.now]
        for _, _, happen in due:
            apply(happen())
        story.now = round(story.now + 0.1, 6)

    assert len(story.starts) <= most_starts
    assert longest_s <= 2 * (max_wait_s + lease_s + start_s) + 0.5, "the bound of the docstring"


def test_the_wait_for_memory_ends_with_the_sums():
    story = Story(free=5 * GIB, memory_budget_bytes=100 * GIB, memory_wait_s=10.0)
    story.model("a", 1, pinned=True)
    story.model("b", 6)
    story.run("a", 1)
    story.free = 4 * GIB
    assert story.arrive(2, "b") == []
    assert story.wait(9.9) == []
    (refusal,) = story.wait(0.3)
    assert isinstance(refusal, Refuse)
    assert (refusal.kind, refusal.retry_after_s) == ("no_room", 10)
    assert refusal.reason == (
        "b needs 6.0 GiB, but 4.0 GiB of memory is free; running: a (1.0 GiB). Waited 10 s."
    )  # fmt: skip
    assert story.wait(60.0) == []
    readings = story.readings
    story.wait(60.0)
    assert story.readings == readings, "nobody waits: nothing is read"


def test_memory_of_gpus_counts_like_that_of_the_machine():
    scheduler = ModelScheduler(SchedulerLimits(), lambda: Need(100 * GIB, 80 * GIB))
    rules = {name: ModelRules(need=Need(GIB, 70 * GIB)) for name in ("a", "b")}
    scheduler.set_models(rules, 0.0)
    assert scheduler.arrive(1, "a", 0.1) == [Start(1, "a")]
    assert scheduler.arrive(2, "b", 0.2) == []
    assert scheduler.view()["b"].state == "stopped"


def test_the_pause_doubles_up_to_a_minute_and_a_load_by_hand_ends_it(one_fits):
    pauses = []
    for ticket in range(8):
        one_fits.arrive(ticket, "a")
        one_fits.ended("a", "no weights")
        view = one_fits.scheduler.view()["a"]
        pauses.append((view.retry_at_s or 0.0) - one_fits.now)
        one_fits.wait(pauses[-1])
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    one_fits.arrive(20, "a")
    one_fits.ended("a", "no weights")
    assert refusals(one_fits.arrive(21, "a")) == {21: "failed"}
    assert happen(one_fits, "load 22 a") == "start a"
    assert happen(one_fits, "ready a") == "admit 22"


@pytest.mark.alone
@pytest.mark.parametrize("ends", ["admitted", "failed", "left"])
def test_waiting_requests_cost_the_same_each(ends):
    def prepare(number: int) -> Callable[[], object]:
        def work() -> None:
            story = Story(max_waiting=number)
            story.model("a", concurrency=1)
            for ticket in range(number):
                story.scheduler.arrive(ticket, "a", 0.0)
            if ends == "failed":
                assert len(story.scheduler.ended(1, "no weights", 1.0)) == number
                return
            if ends == "admitted":
                story.scheduler.became_ready(1, 1.0)
            for ticket in range(number):
                story.scheduler.leave(ticket, 2.0)
            assert story.scheduler.view()["a"].num_waiting == 0

        return work

    assert growth(prepare) is None
