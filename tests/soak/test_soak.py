"""Memory, files, threads and processes of a server do not grow under mixed load, and no request is lost.

The test has four quarters. Each has load of all kinds and then a pause. The soak fails if a resource grows
from pause to pause. Growth after the first pause and a little growth of memory are allowed.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Self

import psutil
import pytest

from tests.contracts.hostile_requests import AMBIGUOUS, GARBAGE
from tests.e2e.request_fuzzer import MODEL, RequestFuzzer, send_all
from tests.e2e.server_process import ServerProcess
from tests.support.http_client import LoadClients, RawClient, ask, request_bytes
from tests.support.waiting import wait_until

_SHARE = 0.01
_NOISE_BYTES = 1 << 20
_SETTLE_S = 60.0
_POLL_S = 0.5


class Held(NamedTuple):
    """The resources of some processes together."""

    memory_bytes: int
    files: int
    threads: int
    processes: int


def measure(processes: Iterable[psutil.Process]) -> Held:
    """Measures these processes. Leaves out processes that exit meanwhile."""
    memory_bytes = files = threads = number = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess), process.oneshot():
            memory_bytes += process.memory_info().rss
            files += process.num_fds()
            threads += process.num_threads()
            number += 1
    return Held(memory_bytes, files, threads, number)


def settle(measure_now: Callable[[], Held], earlier: Sequence[Held]) -> Held:
    """Waits up to a minute for three readings in a row with equal numbers and without growth."""
    readings: list[Held] = []
    deadline_s = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline_s:
        readings = [*readings, measure_now()][-3:]
        is_stable = len(readings) == 3 and len({reading[1:] for reading in readings}) == 1
        if is_stable and not find_growth([*earlier, readings[-1]]):
            break
        time.sleep(_POLL_S)
    return readings[-1]


def find_growth(rests: Sequence[Held]) -> list[str]:
    """One line for each resource of which the last pause has more than each earlier pause.

    The first pause does not count, because caches are not full before it. Memory may exceed the maximum of
    earlier pauses by 1 % and a megabyte. A server with a leak has more memory in each pause, even if its
    memory varies under load.
    """
    judged, last = rests[1:-1], rests[-1]
    if not judged:
        return []
    most = Held(*(max(values) for values in zip(*judged, strict=True)))
    allowed = most._replace(memory_bytes=int(most.memory_bytes * (1 + _SHARE)) + _NOISE_BYTES)
    return [
        f"{name}: {now} in the last pause, at most {before} earlier"
        for name, now, before, limit in zip(Held._fields, last, most, allowed, strict=True)
        if now > limit
    ]


PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses", "/tokenize", "/detokenize")
SETTINGS = (
    # Small caches are full after the first quarter; bursts overflow a short queue.
    *("--kv-cache-memory-bytes", "256M", "--max-num-queued-reqs", "48", "--max-logprobs", "-1"),
    *("--served-model-name", MODEL, "--max-model-len", "2048", "--override-generation-config.max_new_tokens", "16"),
    "--disable-uvicorn-access-log",
)
NUM_QUARTERS = 4


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_nothing_grows_under_mixed_load_and_nothing_is_lost(model_path, pytestconfig):
    minutes, seed = pytestconfig.getoption("--minutes", 0.7), pytestconfig.getoption("--seed", 0)
    rests: list[Held] = []
    with ServerProcess([str(model_path), *SETTINGS]) as server:
        for quarter in range(NUM_QUARTERS):
            with MixedLoad(server, *PATHS, seed=seed + quarter) as load:
                time.sleep(minutes * 60 / NUM_QUARTERS)
            rests.append(settle(lambda: measure(server.family()), rests))
            print(f"\nquarter {quarter + 1}: {rests[-1]}\n  {dict(load.counts)}")
            assert load.faults == []
            assert load.counts["answered"]
            assert load.counts["burst: 503"]
        assert find_growth(rests) == []
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
            wait_until(lambda name=name: server.metric(name) == 0)
        assert server.health() == 200


_LONGEST_STAY_S: Final = 3.0
_SHED: Final = (429, 503, 504)
_STREAM: Final = {"prompt": "Once", "max_tokens": 48, "n": 2, "logprobs": 5, "stream": True, "ignore_eos": True}
_SHORT: Final = {"prompt": "Once upon a time", "max_tokens": 4}
_MALFORMED: Final = (
    *AMBIGUOUS.values(),
    *GARBAGE.values(),
    b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 400 + b"\r\n",
    b"GET /health HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n",
)


class MixedLoad:
    """Clients that run until the end of the `with` block. `faults` are answers that no client should get."""

    def __init__(self, server: ServerProcess, *paths: str, seed: int) -> None:
        self._port = server.port
        self._url = server.url
        self._rng = random.Random(seed)
        self._fuzzer = RequestFuzzer(ask(f"{server.url}/openapi.json").json, *paths)
        self._steady = LoadClients(server.port, num_clients=4)
        self.counts: Counter[str] = Counter()
        """Action of clients -> how often it was done."""
        self.faults: list[str] = []
        self._is_over = threading.Event()
        actors = (
            self._fuzz,
            self._misbehave,
            self._misbehave,
            self._read_slowly,
            self._pipeline,
            self._probe,
            self._burst,
        )
        self._threads = [threading.Thread(target=self._repeat, args=(actor,), name=actor.__name__) for actor in actors]

    def __enter__(self) -> Self:
        self._steady.__enter__()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._steady.__exit__()
        for thread in self._threads:
            thread.join()
        self.counts.update(self._steady.endings)
        self.faults += self._steady.losses
        self.faults += [f"{num} x {ending}" for ending in ("failed", "lost") if (num := self._steady.endings[ending])]

    def _repeat(self, act: Callable[[], None]) -> None:
        while not self._is_over.is_set():
            try:
                act()
            except (OSError, AssertionError) as err:
                self.faults.append(f"{act.__name__}: {err!r}")
            self.counts[act.__name__] += 1

    def _fuzz(self) -> None:
        """Sends generated requests. About half of them are valid."""
        first = self._rng.randrange(1 << 40)
        self.faults += send_all(self._port, self._fuzzer.request, range(first, first + 64), shed=_SHED).failures

    def _misbehave(self) -> None:
        """Sends nothing, malformed bytes, half a request, or a request whose stream it never reads."""
        whole = request_bytes("/tokenize", b'{"prompt": "Once upon a time"}')
        half = whole[: self._rng.randrange(len(whole))]
        with RawClient(self._port, receive_buffer=4096) as client:
            if self._rng.random() < 0.3:
                client.post("/v1/completions", _STREAM | {"max_tokens": 200})
            else:
                client.send(self._rng.choice((b"", half, *_MALFORMED)))
            self._is_over.wait(self._rng.uniform(0, _LONGEST_STAY_S))

    def _read_slowly(self) -> None:
        """Reads a stream in small pieces, and checks that it is complete."""
        with RawClient(self._port, receive_buffer=4096) as client:
            client.post("/v1/completions", _STREAM, connection="close")
            received = b""
            while data := client.socket.recv(1024):
                received += data
                time.sleep(0.01)
        self._expect(received, b"[DONE]")

    def _pipeline(self) -> None:
        """Sends several requests before it reads answers. Each request must be answered."""
        with RawClient(self._port) as client:
            num_sent = self._rng.randint(2, 6)
            for _ in range(num_sent):
                client.post("/v1/completions", _SHORT)
            for _ in range(num_sent):
                answer = client.read()
                assert answer.status in (200, *_SHED), answer

    def _burst(self) -> None:
        """Sends more requests at once than the queue takes. The others are refused, and none is lost."""
        clients = [RawClient(self._port) for _ in range(64)]
        try:
            for client in clients:
                client.post("/v1/completions", _SHORT)
            for client in clients:
                answer = client.read()
                self.counts[f"burst: {answer.status}"] += 1
                assert answer.status in (200, *_SHED), answer
        finally:
            for client in clients:
                client.socket.close()
        self._is_over.wait(10.0)

    def _probe(self) -> None:
        """Sends probes and reads the metrics, which must work under any load."""
        assert ask(f"{self._url}/health").status == 200
        assert ask(f"{self._url}/metrics").status == 200
        self._is_over.wait(0.1)

    def _expect(self, received: bytes, end: bytes) -> None:
        is_shed = any(b"HTTP/1.1 %d" % status in received[:20] for status in _SHED)
        assert is_shed or (end in received and b'"error"' not in received), received[-300:]


MIB = 1 << 20
REST = Held(200 * MIB, 40, 12, 3)


@pytest.mark.parametrize(
    ("last", "grown"),
    [
        (REST, []),
        (REST._replace(memory_bytes=203 * MIB - 1), []),
        (REST._replace(memory_bytes=204 * MIB), ["memory_bytes"]),
        (REST._replace(files=41), ["files"]),
        (REST._replace(threads=13, processes=4), ["threads", "processes"]),
    ],
    ids=["equal", "one percent", "memory", "a file", "a thread and a process"],
)
def test_more_than_in_every_earlier_pause_is_growth(last, grown):
    filling = Held(150 * MIB, 30, 8, 3)
    found = find_growth([filling, REST, REST._replace(memory_bytes=190 * MIB), last])
    assert [line.partition(":")[0] for line in found] == grown
