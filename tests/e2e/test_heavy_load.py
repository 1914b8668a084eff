"""Under thousands of choices, the server answers other requests, and its memory is bounded."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, sleep

import psutil
import pytest

from tests.e2e.process_tree import wait_process
from tests.e2e.server_process import ServerProcess
from tests.support.http_client import ask
from tests.support.tiers import slow_but_for

CHOICES = 4096
MOST_BYTES = 200_000_000
_PATIENT_S = 600.0
SCHEMAS = {
    "annotation": {"type": "object", "description": "x" * 1_000_000},
    "words": {"enum": [f"word-{i:06}" for i in range(60_000)]},
}


class Watch(threading.Thread):
    """Records the memory growth of processes and the times of /health, until it is stopped."""

    def __init__(self, server: ServerProcess, processes: dict[str, psutil.Process]) -> None:
        super().__init__(name="watch")
        self._server = server
        self._processes = processes
        self._idle = {role: _memory(process) for role, process in processes.items()}
        self.growth = dict.fromkeys(processes, 0)
        self.health_ms: list[float] = []
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.is_set() and max(self.growth.values()) < MOST_BYTES:
            begin_s = perf_counter()
            assert ask(f"{self._server.url}/health").status == 200
            self.health_ms.append((perf_counter() - begin_s) * 1e3)
            for role, process in self._processes.items():
                self.growth[role] = max(self.growth[role], _memory(process) - self._idle[role])
            sleep(0.01)
        if not self._ended.is_set():
            self._server.process.kill()  # before it takes the machine's memory

    def stop(self) -> None:
        self._ended.set()
        self.join()


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[ServerProcess]:
    with ServerProcess([str(tiny_llama), "--max-model-len", "256"]) as running:
        yield running


@pytest.mark.parametrize("name", slow_but_for(SCHEMAS, "annotation"))
def test_choices_share_a_large_grammar(server, name):
    processes = {role: wait_process(server, role) for role in ("api", "engine")}
    request = {"prompt": "a", "temperature": 1, "max_tokens": 1}
    warm = request | {"n": 200, "structured_outputs": {"json": {"type": "object"}}}
    assert ask(f"{server.url}/v1/completions", warm).status == 200
    watch = Watch(server, processes)
    watch.start()
    try:
        many = request | {"n": CHOICES, "structured_outputs": {"json": SCHEMAS[name]}}
        answer = ask(f"{server.url}/v1/completions", many, timeout_s=_PATIENT_S)
        assert answer.status == 200
        assert len(json.loads(answer.body)["choices"]) == CHOICES
    finally:
        watch.stop()
    health_ms = sorted(watch.health_ms)
    p50, p99 = (health_ms[int(len(health_ms) * share)] for share in (0.5, 0.99))
    megabytes = {role: num_bytes // 1_000_000 for role, num_bytes in watch.growth.items()}
    print(f"\n{name}: {megabytes} MB above idle; /health p50 {p50:.1f}, p99 {p99:.1f}, max {health_ms[-1]:.1f} ms")
    assert max(watch.growth.values()) < MOST_BYTES


def _memory(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.NoSuchProcess:
        return 0
