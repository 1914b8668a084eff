"""The log line of figures."""

import asyncio
import logging
from time import monotonic

import pytest

from server.operation.telemetry import StatsLine, Telemetry

INTERVAL_S = 0.01


async def _log_lines(parts, caplog, num_lines: int) -> list[logging.LogRecord]:
    line = StatsLine(parts.engine, parts.metrics, INTERVAL_S)
    line.start()
    parts.metrics.engine.count_prompt(30, num_cached=10)
    parts.metrics.engine.count_generated(7)
    try:
        async with asyncio.timeout(60):
            while len(records := _of_the_line(caplog)) < num_lines:
                await asyncio.sleep(0.005)
    finally:
        line.close()
    return records


def _of_the_line(caplog) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "server.operation.telemetry"]


async def test_figures_are_logged_until_the_server_is_idle(serve, caplog):
    caplog.set_level(logging.DEBUG, logger="server.operation.telemetry")
    parts = serve().parts
    begin_s = monotonic()
    first, second, third, *_ = await _log_lines(parts, caplog, 4)
    prompt, generation, *_ = first.args
    assert 20 / (monotonic() - begin_s) < prompt < 2 * 20 / INTERVAL_S
    assert prompt / generation == pytest.approx(20 / 7), "what was cached was not computed"
    assert (first.levelno, second.levelno, third.levelno) == (logging.INFO, logging.INFO, logging.DEBUG)
    assert second.args[:2] == (0.0, 0.0)
    assert first.getMessage().startswith("Engine 000: Avg prompt throughput: ")


def test_disable_log_stats_turns_the_line_off(serve):
    for is_disabled in (True, False):
        parts = serve(disable_log_stats=is_disabled).parts
        assert (Telemetry(parts.config.logging, parts.engine, parts.metrics)._stats is None) == is_disabled
