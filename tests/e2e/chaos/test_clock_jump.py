"""The wall clock jumps by days in both directions: durations and time-outs use a monotonic clock."""

import json
import mmap
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import pytest

from tests.cli import run_cli, run_python
from tests.e2e.clients import LoadClients, StreamReader
from tests.e2e.server_process import ServerProcess
from tests.http_answer import ask
from tests.processes import assert_gone
from tests.waiting import wait_until

_SOURCE = Path(__file__).with_name("jumping_clock.c")
_DAY_S = 86400
_FORWARD_S = 3 * _DAY_S
_BACK_S = -400 * _DAY_S
_HOUR_S = 3600
_GONE_S = 120.0


class JumpingClock:
    """A process that gets `environment`, and every process that it starts, uses this clock."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler is installed")
        self._library = folder / "jumping_clock.so"
        self._shift = folder / "shift"
        self._shift.write_bytes(struct.pack("q", 0))
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", self._library, _SOURCE], check=True)

    def __enter__(self) -> Self:
        with self._shift.open("r+b") as file:
            self._mapped = mmap.mmap(file.fileno(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._mapped.close()

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables of a process that uses this clock."""
        preloaded = " ".join([str(self._library), *os.environ.get("LD_PRELOAD", "").split()])
        return {"LD_PRELOAD": preloaded, "JUMPING_CLOCK": str(self._shift)}

    def set(self, seconds: int) -> None:
        """Sets the clock ahead of the real one by this many seconds, or behind it if negative."""
        self._mapped[:] = struct.pack("q", seconds)


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[JumpingClock]:
    with JumpingClock(tmp_path) as clock:
        yield clock


def _today(clock: JumpingClock) -> str:
    """The date as in a log line."""
    return run_python("import time; print(time.strftime('%m-%d'))", environment=clock.environment).stdout.strip()


def _assert_whole(reader: StreamReader, max_tokens: int) -> None:
    events = reader.finish()
    assert events.pop() is None
    assert sum(bool(event["choices"]) for event in events) == max_tokens


def _durations(url: str) -> list[tuple[str, float]]:
    """Metrics in seconds: sums and gauges."""
    text = ask(f"{url}/metrics").body.decode()
    found = re.findall(r"^(\S+_seconds(?:_sum)?(?:\{.*\})?) (\S+)$", text, re.MULTILINE)
    return [(name, float(value)) for name, value in found if "start_time" not in name]


@pytest.mark.slow
def test_requests_probes_metrics_and_logs_continue_when_the_clock_jumps(model_path, clock):
    words = [str(model_path), "--engine-watchdog-timeout", "60"]
    with ServerProcess(words, environment=dict(clock.environment)) as server:
        clients = LoadClients(server.port, num_clients=2)
        clients.start()
        try:
            for jump_s in (_FORWARD_S, _BACK_S):
                reader = StreamReader(server.url, 40)
                clock.set(jump_s)
                _assert_whole(reader, 40)
                assert server.complete(max_tokens=2) == 200
                today = f" {_today(clock)} "  # the server uses this clock
                wait_until(lambda today=today: today in server.log.splitlines()[-1])  # type: ignore[misc]
        finally:
            clients.stop()
        assert not clients.losses
        assert set(clients.endings) == {"answered"}
        durations = _durations(server.url)
        assert len(durations) > 10
        assert [(name, value) for name, value in durations if not 0 <= value < _HOUR_S] == []
        assert server.terminate() == 0
        assert "silent" not in server.log
        assert "Traceback" not in server.log


@pytest.mark.slow
def test_start_and_its_history_have_right_durations_when_the_clock_jumps(model_path, tmp_path, clock):
    settings = {**clock.environment, "VLLM_CACHE_ROOT": str(tmp_path / "cache")}
    for jump_s in (_BACK_S, _FORWARD_S):
        report_file = tmp_path / f"report{jump_s}.json"
        words = [str(model_path), "--startup-report", str(report_file), "--startup-timeout", "240"]
        with ServerProcess(words, environment=settings, wait=False) as server:
            wait_until(lambda server=server: server.phase())  # type: ignore[misc]
            clock.set(jump_s)
            server.wait_ready()
            server.wait_logged("ready after")
            report = json.loads(report_file.read_text())
            assert 0 < report["total_s"] < _HOUR_S
            assert all(0 <= phase["took_s"] < _HOUR_S for phase in report["phases"])
            listed = json.loads(run_cli("ps", "--json", environment=clock.environment).stdout)
            (uptime_s,) = [s["uptime_s"] for s in listed if s["pid"] == server.process.pid]
            assert 0 < uptime_s < _HOUR_S
            assert server.terminate() == 0
    history = [json.loads(line) for line in (tmp_path / "cache/vllm_cli/history.jsonl").read_text().splitlines()]
    assert [0 < start["total_s"] < _HOUR_S for start in history] == [True, True]


@pytest.mark.slow
def test_keys_are_reloaded_and_the_drain_keeps_its_time_when_the_clock_jumps(model_path, tmp_path, clock):
    keys = tmp_path / "keys"
    keys.write_text("first\n")
    words = [str(model_path), "--api-key-file", str(keys), "--shutdown-timeout", "600"]
    with ServerProcess(words, environment=dict(clock.environment)) as server:
        clock.set(_BACK_S)
        keys.write_text("second\n")
        models = f"{server.url}/v1/models"
        wait_until(lambda: ask(models, key="second").status == 200)
        assert ask(models, key="first").status == 401

        reader = StreamReader(server.url, 200, key="second")
        family = server.family()
        server.process.terminate()
        server.wait_unready()
        clock.set(_FORWARD_S)
        _assert_whole(reader, 200)
        assert server.process.wait(_GONE_S) == 0
        assert_gone(family)
