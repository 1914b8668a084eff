"""The model pool with real processes: leases cancelled at any moment, refusals, and the pool's end."""

import asyncio
import errno
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from router.child import child as child_module
from router.child import server as server_module
from router.model_entry import ForeignCommand, ModelEntry, ServerCall
from router.model_memory import MemoryMeter
from router.model_pool import ModelPool, ModelRefused
from router.scheduling.terms import SchedulerLimits
from tests.router.conftest import SmallOwner, open_places
from tests.router.http.small_router import eventually, metric_values
from tests.router.router_process import FOREIGN_COMMAND
from tests.support.marks import thorough_but_for
from tests.support.waiting import is_gone, wait_until


def entry_of(
    name: str,
    *arguments: str,
    stop_words: tuple[str, ...] = (),
    sleep: ServerCall | None = None,
    wake: ServerCall | None = None,
    **keys: object,
) -> ModelEntry:
    foreign = ForeignCommand(
        arguments=(*FOREIGN_COMMAND, "${PORT}", *arguments),
        address="http://127.0.0.1:${PORT}",
        port=None,
        stop_words=stop_words,
        sleep_calls=(sleep,) if sleep else (),
        wake_calls=(wake,) if wake else (),
    )
    return ModelEntry(**{"name": name, "foreign": foreign, **keys})  # type: ignore[arg-type]


def by_name(*entries: ModelEntry) -> dict[str, ModelEntry]:
    return {entry.name: entry for entry in entries}


@pytest.fixture
async def pool(tmp_path: Path, owner: SmallOwner) -> AsyncIterator[ModelPool]:
    async with open_pool(tmp_path, owner) as pool:
        yield pool


@asynccontextmanager
async def open_pool(
    tmp_path: Path,
    owner: SmallOwner | None = None,
    *,
    only: str | None = None,
    find_model: Callable[[str], str | None] = lambda _: None,
) -> AsyncIterator[ModelPool]:
    limits = SchedulerLimits(max_running=2, max_waiting=30, max_wait_s=0.1, min_stay_s=0.0)
    owner = owner or SmallOwner()
    with open_places(tmp_path / "output") as owner.place:
        pool = ModelPool(limits, MemoryMeter(find_model), owner, only=only)
        pool.begin(lambda: 0)
        yield pool
        await pool.drain()


@pytest.mark.thorough
async def test_leases_that_are_cancelled_at_any_moment_leave_nothing(pool):
    rng = random.Random(3)
    pool.set_entries(by_name(*[entry_of(name) for name in "abc"]))

    async def use(name: str) -> None:
        with suppress(ModelRefused):
            async with pool.lease(name) as child:
                assert child.entry.name == name
                await asyncio.sleep(rng.random() * 0.2)

    users = [asyncio.create_task(use(rng.choice("abc"))) for _ in range(60)]
    for user in users:
        await asyncio.sleep(rng.random() * 0.05)
        if rng.random() < 0.7:
            user.cancel()
    await asyncio.gather(*users, return_exceptions=True)
    assert {(status.num_running, status.num_waiting) for status in pool.view()} == {(0, 0)}
    async with pool.lease("a") as child:
        pid = child.pids[0]
    await pool.unload("a")
    assert is_gone(pid)


async def test_more_waiters_than_allowed_are_refused(pool):
    pool.set_entries(by_name(entry_of("a", "never-listens")))

    async def use() -> object:
        try:
            async with pool.lease("a"):
                return 200
        except ModelRefused as err:
            return err.status, err.retry_after_s

    users = [asyncio.create_task(use()) for _ in range(32)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [user.result() for user in users if user.done()] == [(429, 1)] * 2
    pool.set_entries({})
    assert {await user for user in users[:30]} == {(404, None)}


@pytest.mark.thorough
async def test_starts_waits_and_refusals_are_counted(pool, caplog):
    """A command records nothing about its start, so the mode of its start is unknown."""
    pool.set_entries(by_name(entry_of("good"), entry_of("bad", "dies"), entry_of("slow", "never-listens")))
    await _use(pool, "good")
    with pytest.raises(ModelRefused, match="the disk is on fire"):
        await _use(pool, "bad")
    (record,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert (record.code, "the disk is on fire" in record.message) == ("VC-UNKNOWN", True)
    waiting = asyncio.create_task(_use(pool, "slow"))
    await eventually(lambda: pool.process_of("slow") is not None)
    await pool.unload("slow")
    waiting.cancel()
    counts = metric_values(pool, "starts_total")
    assert counts.pop(("slow", "stopped", "", "")) >= 1
    assert counts == {("good", "ready", "", ""): 1, ("bad", "failed", "", "VC-UNKNOWN"): 1}
    assert metric_values(pool, "refusals_total") == {("bad", "failed"): 1}
    assert metric_values(pool, "wait_seconds_count") == {("good",): 1, ("bad",): 1}
    assert metric_values(pool, "wait_seconds_sum")["good",] > 0


async def test_a_start_without_a_free_port_is_counted(pool, monkeypatch):
    def fail(_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(server_module, "find_free_port", fail)
    pool.set_entries(by_name(entry_of("a")))
    with pytest.raises(ModelRefused, match="Too many open files. Code: VC-PROGRAM-NOT-STARTED"):
        await _use(pool, "a")
    assert metric_values(pool, "starts_total") == {("a", "failed", "", "VC-PROGRAM-NOT-STARTED"): 1}


async def test_a_model_keeps_its_process_if_only_the_router_reads_what_changed(pool):
    pool.set_entries(by_name(entry_of("a")))
    async with pool.lease("a") as before:
        pool.set_entries(by_name(entry_of("a", ttl_s=60.0, aliases=("b",))))
    for _ in range(100):
        async with pool.lease("a") as after:
            assert after is before
    assert pool.resolve("b") is pool.entries["a"]
    pool.set_entries(by_name(entry_of("a", "other words")))
    async with pool.lease("a") as changed:
        assert changed is not before
        assert Path(changed.place.socket_path).name == "2.sock"  # however many requests there were
        assert is_gone(before.pids[0])


async def test_requests_wait_while_a_dead_process_leaves_others_behind(pool, monkeypatch):
    async def end_slowly(*_: object) -> None:
        await asyncio.sleep(0.3)

    monkeypatch.setattr(child_module.Child, "_ask_to_end", end_slowly)
    pool.set_entries(by_name(entry_of("a")))
    async with pool.lease("a") as before:
        pass
    os.kill(before.pids[0], 9)
    await eventually(lambda: not pool.is_ready("a"))
    assert pool.process_of("a") is before
    async with pool.lease("a") as after:
        assert after is not before


async def test_near_names_are_found_in_bounded_time(pool):
    pool.set_entries(by_name(entry_of("qwen-small"), entry_of("hidden", unlisted=True)))
    assert pool.near_names("qwen-smal") == ["qwen-small"]
    assert pool.near_names("hiden") == []
    assert pool.near_names("qwen-small" * 1_000_000) == []


@pytest.mark.parametrize(
    "stop", thorough_but_for(("drain", "cmdStop", "unload", "for another", "ttl"), "cmdStop", "ttl")
)
async def test_a_command_is_stopped_when_its_last_lease_has_ended(pool, stop):
    arguments = ("sh", "-c", "kill -TERM $0", "${PID}") if stop == "cmdStop" else ()
    entry = entry_of("a", stop_words=arguments, ttl_s=0.01 if stop == "ttl" else None)
    pool.set_entries(by_name(entry, entry_of("b", excludes=frozenset("a"))))
    async with pool.lease("a"), pool.lease("a") as child:
        stopping = asyncio.create_task(_stop(pool, stop))
        await asyncio.sleep(0.1)
        assert not is_gone(child.pids[0])
    await asyncio.wait_for(stopping, 30)
    await asyncio.to_thread(wait_until, lambda: is_gone(child.pids[0]))


async def _stop(pool: ModelPool, how: str) -> None:
    if how == "for another":
        async with pool.lease("b"):
            pass
    elif how != "ttl":
        await (pool.unload("a") if how == "unload" else pool.drain())


@pytest.mark.thorough
async def test_a_drain_of_commands_takes_no_longer_than_that_of_our_servers(pool, monkeypatch):
    monkeypatch.setattr(child_module, "STOP_S", 0.2)
    monkeypatch.setattr(child_module, "ERRORS_S", 0.2)
    pool.set_entries(by_name(entry_of("a"), entry_of("b", "ignores-sigterm")))
    async with pool.lease("a") as ends, pool.lease("b") as stays:
        await asyncio.wait_for(pool.drain(), 30)
        assert is_gone(ends.pids[0])
        assert is_gone(stays.pids[0])


_SLEEP, _WAKE = ServerCall("POST", "/sleep?level=1"), ServerCall("POST", "/wake_up", body="{}")


def _pair(**calls: ServerCall) -> dict[str, ModelEntry]:
    """Entries of models a and b, of which only one can be awake. b is stopped for a."""
    calls = {"sleep": _SLEEP, "wake": _WAKE, **calls}
    a = entry_of("a", "sleeps", on_swap="sleep", excludes=frozenset("b"), **calls)
    return by_name(a, entry_of("b", excludes=frozenset("a")))


async def _use(pool: ModelPool, name: str) -> int:
    async with asyncio.timeout(60), pool.lease(name) as child:
        return child.pids[0]


def _states(pool: ModelPool) -> dict[str, str]:
    return {status.entry.name: status.state for status in pool.view()}


@pytest.mark.thorough
async def test_a_model_sleeps_for_another_one_and_wakes_as_it_was(pool):
    pool.set_entries(_pair())
    pid = await _use(pool, "a")
    for _ in range(2):
        await _use(pool, "b")
        assert _states(pool) == {"a": "asleep", "b": "ready"}
        assert await _use(pool, "a") == pid
        assert _states(pool) == {"a": "ready", "b": "stopped"}
    (status, _) = pool.view()
    assert (status.num_starts, status.sleep.counts) == (1, {"sleep": 2, "wake": 2})
    assert set(status.sleep.last_s) == {"sleep", "wake"}


@pytest.mark.thorough  # test_outcomes.py has it, too, but not the log
async def test_a_model_that_does_not_fall_asleep_is_stopped_instead_which_is_logged_once(pool, caplog):
    pool.set_entries(_pair(sleep=ServerCall("POST", "/sleep", body="fails")))
    for _ in range(2):
        pid = await _use(pool, "a")
        await _use(pool, "b")
        assert is_gone(pid)
    (status, _) = pool.view()
    assert (status.state, status.reason) == ("stopped", "")
    assert status.outcome == ("could not sleep", "It did not fall asleep: POST /sleep answers 500")
    assert status.sleep.failures == {("sleep", "refused"): 2}
    assert caplog.text.count("a is stopped instead of sleeping. It did not fall asleep") == 1


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("has_gpus", "engine", "on_swap", "num_lines"),
    [(True, "vllm", "stop", 1), (False, "vllm", "stop", 0), (True, "embedded", "stop", 0), (True, "vllm", "sleep", 0)],
    ids=["swap", "no GPU", "other engine", "sleeps"],
)
async def test_a_swap_of_two_models_of_vllm_on_a_gpu_names_sleep_once(
    pool, monkeypatch, caplog, has_gpus, engine, on_swap, num_lines
):
    caplog.set_level("INFO")
    monkeypatch.setattr(MemoryMeter, "has_gpus", has_gpus)
    keys = {"on_swap": on_swap, "sleep": _SLEEP, "wake": _WAKE}
    a = entry_of("a", "sleeps", engine="vllm", excludes=frozenset("b"), **keys)
    pool.set_entries(by_name(a, entry_of("b", "sleeps", engine=engine, excludes=frozenset("a"), **keys)))
    for name in "abab":
        await _use(pool, name)
    assert caplog.text.count("With --on-swap sleep, both would keep their processes") == num_lines


async def test_a_model_without_calls_for_its_sleep_cannot_sleep(pool):
    pool.set_entries(by_name(entry_of("a")))
    await pool.load("a")
    with pytest.raises(ModelRefused, match="a cannot sleep") as refused:
        await pool.sleep("a")
    assert refused.value.status == 409


@pytest.mark.thorough
async def test_what_the_embedded_engine_leaves_in_a_standby_is_shown_as_asleep(pool, owner):
    pool.set_entries(by_name(entry_of("a", engine="embedded", on_swap="sleep"), entry_of("b", engine="embedded")))
    owner.has_standby = True
    assert _states(pool) == {"a": "stopped", "b": "stopped"}, "never started"
    for name in "ab":
        await _use(pool, name)
        await pool.sleep(name)
    assert _states(pool) == {"a": "asleep", "b": "stopped"}
    owner.has_standby = False
    assert _states(pool) == {"a": "stopped", "b": "stopped"}
