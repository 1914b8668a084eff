"""The event loop spreads a burst of requests over its iterations. Its lag is measured."""

import asyncio
from unittest.mock import Mock

import pytest

from server.http.app import LoopTurns
from server.http.transport.http_request import Request
from server.operation.metrics.server_metrics import INTERVAL_S, LoopHeartbeat


async def test_a_burst_begins_a_few_at_a_time_and_in_order():
    turns = LoopTurns()
    begun: list[int] = []

    async def begin(number: int) -> None:
        await turns.wait()
        begun.append(number)

    tasks = [asyncio.create_task(begin(number)) for number in range(100)]
    sizes = []
    while len(begun) < 100:
        before = len(begun)
        await asyncio.sleep(0)
        sizes.append(len(begun) - before)
    assert begun == list(range(100))
    assert max(sizes) <= 4
    await asyncio.gather(*tasks)


async def test_a_cancelled_request_uses_up_no_turn():
    turns = LoopTurns()
    tasks = [asyncio.create_task(turns.wait()) for _ in range(50)]
    await asyncio.sleep(0)
    for task in tasks[4:40]:
        task.cancel()
    await asyncio.wait(tasks)
    assert [task.cancelled() for task in tasks] == [False] * 4 + [True] * 36 + [False] * 10
    await asyncio.wait_for(turns.wait(), 30)


async def test_bodies_are_read_a_few_pieces_at_a_time():
    turns = LoopTurns()
    num_read = 0

    async def read_ten_pieces() -> None:
        nonlocal num_read
        request = Request(Mock(), "POST", b"/", [])
        request.wait_turn = turns.wait
        for _ in range(10):
            request.add_part(b"x")
            assert await request.read() == [b"x"]
            num_read += 1

    tasks = [asyncio.create_task(read_ten_pieces()) for _ in range(20)]
    await asyncio.sleep(0)
    sizes = []
    while not all(task.done() for task in tasks):
        before = num_read
        await asyncio.sleep(0)
        sizes.append(num_read - before)
    assert num_read == 200
    assert max(sizes) <= 4
    await asyncio.gather(*tasks)


async def test_a_blocked_loop_shows_in_its_heartbeat(monkeypatch):
    loop, beats = asyncio.get_running_loop(), list[float]()
    now_s = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now_s)
    heartbeat = LoopHeartbeat(beats.append)
    heartbeat.start()
    now_s += 10
    while not beats:
        await asyncio.sleep(0)
    heartbeat.close()
    assert heartbeat.lag.max_s == beats[0] == pytest.approx(10 - INTERVAL_S)
