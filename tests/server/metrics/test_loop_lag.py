"""The lag of an event loop."""

import asyncio
import time

from server.metrics.loop import LoopHeartbeat


async def test_a_blocked_loop_shows_in_its_heartbeat():
    beats: list[float] = []
    heartbeat = LoopHeartbeat(beats.append)
    heartbeat.start()
    while not beats:
        await asyncio.sleep(0.01)
    time.sleep(0.2)
    num_before = len(beats)
    while len(beats) == num_before:
        await asyncio.sleep(0.01)
    heartbeat.close()
    assert heartbeat.worst_lag_s == max(beats) >= 0.17
