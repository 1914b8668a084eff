"""How a model's process ends in each state, and what the router's answers say about it afterwards.

A row of `ENDS` is one state of a process and one way to end it there. The router has one model, so all of its
answers are asked: probes, lists, metrics, and the data of the status page, which `vllm-cli ps` reads.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from router.model_entry import ModelEntry, ServerCall
from router.model_pool import ModelPool, ModelRefused, ModelStatus
from router.scheduling.terms import State
from startup.processes import back_off
from tests.router.conftest import SmallOwner
from tests.router.http.small_router import SmallRouter, eventually
from tests.router.test_model_pool import by_name, entry_of, open_pool
from tests.support.http_client import Answer
from tests.support.marks import thorough_but_for
from vllm_cli.client.running_servers import parse_models

Ask = Callable[..., Awaitable[Answer]]
_SLEEPS: Final = ServerCall("POST", "/sleep")
_WAKES: Final = ServerCall("POST", "/wake_up")


class End(NamedTuple):
    state: State
    """What the process does when it ends."""
    how: str
    """`killed` by a signal, `refused`: it rejects an order, `timed out`: it does not carry an order out."""

    @property
    def is_failure(self) -> bool:
        return self.state != "draining" and (self.state, self.how) != ("falling asleep", "refused")


ENDS: Final = [
    *(End(state, how) for state in ("starting", "ready", "asleep", "draining") for how in ("killed", "timed out")),
    *(End(state, how) for state in ("falling asleep", "waking") for how in ("killed", "refused", "timed out")),
]


@pytest.fixture
async def pool(tmp_path: Path, owner: SmallOwner, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ModelPool]:
    """A pool whose model starts again soon after a failure."""
    monkeypatch.setattr(back_off, "_FIRST_S", 0.05)
    async with open_pool(tmp_path, owner, only="a") as pool:
        yield pool


@pytest.mark.parametrize("restart_limit", [None, 9], ids=["no-restart", "restart"])
@pytest.mark.parametrize(
    "end", thorough_but_for(ENDS, ENDS[2], End("falling asleep", "refused")), ids=lambda end: f"{end.state}-{end.how}"
)
async def test_a_process_that_ends_in_any_state(pool, router, ask, end, restart_limit):
    entry = _entry(end, restart_limit)
    pool.set_entries(by_name(entry))
    await router.serve(pool=pool, has_single_model=True)
    async with AsyncExitStack() as stack:
        await _reach(pool, end.state, stack)
        pool.set_entries(by_name(replace(entry, start_timeout_s=None)))  # the next start stays in its state
        await _end(pool, end)
        await eventually(lambda: _status(pool).state != end.state)
    starts_again = end.is_failure and (restart_limit is not None or end.state == "waking")  # a load waits for the wake
    if starts_again:
        await eventually(lambda: _status(pool).num_starts > 1)
        state = "starting" if end.state == "starting" else "ready"
        await eventually(lambda: _status(pool).state == state)
    else:
        state = "failed" if end.is_failure else "stopped"
        await eventually(lambda: _status(pool).state == state and not _status(pool).retry_after_s)
    await _check_answers(pool, ask, has_failed=state in ("failed", "starting"))
    assert (_status(pool).num_starts > 1) == starts_again


def _entry(end: End, restart_limit: int | None) -> ModelEntry:
    bodies = {"refused": "fails", "timed out": "hangs", "killed": "hangs"}
    limit_s = 0.1 if end.how == "timed out" else 60.0
    call = {"body": bodies[end.how], "timeout_s": limit_s}
    sleeps, wakes = end.state == "falling asleep", end.state == "waking"
    return entry_of(
        "a",
        "never-listens" if end.state == "starting" else "sleeps",
        sleep=_SLEEPS._replace(**call) if sleeps else _SLEEPS,
        wake=_WAKES._replace(**call) if wakes else _WAKES,
        idle_sleep_s=600.0,
        restart_limit=restart_limit,
        start_timeout_s=0.2 if end.state == "starting" and end.how == "timed out" else None,
    )


async def _reach(pool: ModelPool, state: State, stack: AsyncExitStack) -> None:
    """Brings the model into this state. For `waking` and `draining`, requests hold it there."""

    async def begin(work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(work)
        stack.push_async_callback(asyncio.gather, task, return_exceptions=True)
        stack.callback(task.cancel)

    if state != "starting":
        await pool.load("a")
    match state:
        case "starting" | "waking":
            if state == "waking":
                await pool.sleep("a")
            await begin(pool.load("a"))
        case "falling asleep":
            await begin(pool.sleep("a"))
        case "asleep":
            await pool.sleep("a")
        case "draining":
            await stack.enter_async_context(pool.lease("a"))
            await begin(pool.unload("a"))
    await eventually(lambda: _status(pool).state == state or _status(pool).outcome.kind != "stopped")
    await eventually(lambda: pool.process_of("a") is None or pool.process_of("a").process is not None)


async def _end(pool: ModelPool, end: End) -> None:
    """Ends the process, unless an order's own refusal or time limit does."""
    child = pool.process_of("a")
    if child is None or end.how == "refused":
        return
    if end.how == "killed":
        child.process.signal(signal.SIGKILL)
    elif end.state in ("ready", "asleep", "draining"):
        child.fail("It has not answered for 300 s")  # what `Child` finds in a server of ours


def _status(pool: ModelPool) -> ModelStatus:
    (status,) = pool.view()
    return status


async def _check_answers(pool: ModelPool, ask: Ask, *, has_failed: bool) -> None:
    """Checks that all answers agree with each other. No answer shows a reason without a failure."""
    state, restarts = _status(pool).state, _status(pool).entry.restart_limit is not None
    has_run = _status(pool).last_start_s is not None
    health = await ask("GET", "/health")
    assert health.status == (503 if has_failed and (restarts or not has_run) else 200), health
    if health.status == 200:
        assert health.headers.get("model-state") == (None if state == "ready" else state)
    readyz = await ask("GET", "/readyz?model")
    assert readyz.status == (200 if state == "ready" else 503)
    card = (await ask("GET", "/v1/models")).json["data"][0]
    row = (await ask("GET", "/status.json")).json["models"][0]
    (shown,) = parse_models((await ask("GET", "/status.json")).json)
    assert {card["status"], row["status"], shown.state} == {state}
    assert {card.get("reason", ""), row["reason"] or "", shown.reason or ""} == {_status(pool).outcome.failure}
    assert bool(_status(pool).outcome.failure) == has_failed
    assert bool((await ask("GET", "/running")).json["running"]) == (state in ("ready", "starting"))
    assert f'vllm_cli:model_state{{model="a",state="{state}"}} 1.0' in (await ask("GET", "/metrics")).body.decode()


# The answers to load, sleep and unload


class Order(NamedTuple):
    state: State
    """The state of the model when it gets the order."""
    verb: str
    status: int
    text: str
    """The state or a part of the message in the answer."""
    sleep: ServerCall = _SLEEPS


ORDERS: Final = [
    Order("stopped", "sleep", 409, "a is stopped: only a ready model falls asleep"),
    Order("starting", "sleep", 409, "a is starting: only a ready model falls asleep"),
    Order("ready", "sleep", 200, "asleep"),
    Order("ready", "sleep", 503, "a did not fall asleep, and is stopped. It did not", _SLEEPS._replace(body="fails")),
    Order("ready", "sleep", 503, "no answer within 0.1 s", _SLEEPS._replace(body="hangs", timeout_s=0.1)),
    Order("asleep", "sleep", 200, "asleep"),
    Order("draining", "sleep", 409, "a is draining: only a ready model falls asleep"),
    Order("failed", "sleep", 409, "a is failed: only a ready model falls asleep"),
    *(Order(state, "load", 200, "ready") for state in ("stopped", "ready", "asleep", "failed")),
    *(Order(state, "unload", 200, "stopped") for state in ("stopped", "starting", "ready", "asleep", "failed")),
]


async def _serve(pool: ModelPool, router: SmallRouter, arguments: str = "sleeps", sleep: ServerCall = _SLEEPS) -> None:
    pool.set_entries(by_name(entry_of("a", arguments, sleep=sleep, wake=_WAKES, idle_sleep_s=600.0)))
    await router.serve(pool=pool, has_single_model=True)


@pytest.mark.parametrize(
    "order",
    thorough_but_for(ORDERS, ORDERS[0], ORDERS[2], ORDERS[4], ORDERS[-1]),
    ids=lambda order: f"{order.verb}-{order.state}-{order.status}",
)
async def test_an_order_is_answered_with_the_state_that_it_reached(pool, router, ask, order):
    await _serve(pool, router, "never-listens" if order.state == "starting" else "sleeps", order.sleep)
    async with AsyncExitStack() as stack:
        if order.state == "failed":
            await pool.load("a")
            pool.process_of("a").fail("It hangs")
            await eventually(lambda: _status(pool).state == "failed")
        elif order.state != "stopped":
            await _reach(pool, order.state, stack)
        answer = await ask("POST", f"/v1/models/a/{order.verb}")
        assert answer.status == order.status
        said = answer.json["status"] if answer.status == 200 else answer.error["message"]
        assert order.text in said
        if order.verb == "unload" and order.state != "starting":  # a load waits and starts it again
            assert _status(pool).state == "stopped"


async def test_a_sleep_for_which_the_memory_has_no_room_is_a_503(pool, router, ask, monkeypatch):
    """The machine's memory takes the weights only at the model's start."""
    await _serve(pool, router)
    await pool.load("a")
    monkeypatch.setattr("router.scheduling.start_plan._growth", lambda *_: 1 << 63)
    answer = await ask("POST", "/v1/models/a/sleep")
    assert answer.status == 503
    assert "a did not fall asleep, and is stopped. The machine's memory" in answer.error["message"]


async def test_a_sleep_that_a_request_cancels_is_a_409(pool, router, ask):
    await _serve(pool, router)
    async with pool.lease("a"):
        sleeping = asyncio.create_task(ask("POST", "/v1/models/a/sleep"))
        await eventually(lambda: _status(pool).state == "falling asleep")
        async with asyncio.timeout(30), pool.lease("a"):
            pass
    answer = await sleeping
    assert answer.status == 409
    assert "a request came before it fell asleep" in answer.error["message"]


async def test_a_model_that_the_embedded_engine_stops_is_not_called_asleep(pool, owner):
    pool.set_entries(by_name(entry_of("a", engine="embedded", on_swap="sleep")))
    await pool.load("a")
    assert not _status(pool).can_sleep
    assert await pool.sleep("a") == "stopped"
    owner.has_standby = True
    assert _status(pool).can_sleep


async def test_a_changed_model_is_not_put_to_sleep_while_its_next_process_starts(tmp_path):
    async with open_pool(tmp_path) as pool:
        pool.set_entries(by_name(entry_of("a", "sleeps", sleep=_SLEEPS, wake=_WAKES, on_swap="sleep")))
        await pool.load("a")
        model = pool._scheduler.models["a"]
        model.next = model.current  # commands get no second process, and vLLM's start costs seconds
        with pytest.raises(ModelRefused, match="a is ready, and requests or another process wait") as refused:
            await pool.sleep("a")
        model.next = None
        assert refused.value.status == 409
