"""The mixed load of a soak: who does what, how often, and bursts of more than a server takes in."""

import asyncio
import gzip
from collections.abc import Awaitable, Callable, Iterator, Sequence
from random import Random
from time import perf_counter
from typing import Final, NamedTuple

import msgspec

from tests.soak.bodies import BAD, GOOD, Measure, Writer
from tests.soak.client import SoakClient
from tests.soak.config import SoakConfig
from tests.soak.ledger import Ledger
from tests.soak.wire import WireClient
from vllm_cli.bench.liveness.payloads import Destination
from vllm_cli.bench.prompts import build_prompt

_PAGES: Final = ("/v1/models", "/version", "/", "/load", "/openapi.json", "/no-such-page", "/v1/models/no-such-model")
_LURKER_SHARE: Final = 0.5
"""Clients that only keep connections, for each of those at work."""
_MAX_TAIL_S: Final = 60.0
"""What clients are at when the time is over may take so long; then they leave."""
_MAX_LURK_S: Final = 25.0
"""A little more than servers let an unfinished request be."""
_MAX_LURK_SHARE: Final = 0.2
_WEIGHTS: Final = {
    "completion": 20,
    "chat": 15,
    "shared prefix": 8,
    "several": 5,
    "logprobs": 4,
    "chat logprobs": 4,
    "schema": 5,
    "structure": 5,
    "tools": 5,
    "template": 4,
    "tokenize": 5,
    "tokenize chat": 3,
    "detokenize": 3,
    "bad body": 8,
    "bad template": 1,
}
"""How often which body is sent, against the others and `_OTHER_WEIGHTS`."""


class Deed(NamedTuple):
    """One thing that clients do again and again."""

    kind: str
    weight: float
    act: Callable[[Random], Awaitable[object]]


class SoakTraffic:
    """Puts one server under load for as long as it is told, several times if wished."""

    def __init__(self, config: SoakConfig, destination: Destination, ledger: Ledger) -> None:
        self._config = config
        self._destination = destination
        self._ledger = ledger
        self._measure = Measure(prompt_tokens=config.prompt_tokens, max_tokens=config.max_tokens)
        self._good = dict(GOOD)
        self._random = Random(config.seed)

    async def leave_out_unknown(self) -> list[str]:
        """Ask once for each kind of thing; kinds that the server refuses are not part of the load. Their names."""
        refused = []
        async with self._open_client(Ledger()) as client:
            for kind, writer in GOOD.items():
                status = await client.post(kind, writer.path, writer.write(Random(kind), self._measure))
                if status is not None and 400 <= status < 500:
                    refused.append(kind)
                    del self._good[kind]
        return refused

    async def run(self, duration_s: float) -> None:
        """Load the server; all connections are closed when this returns."""
        end_s = perf_counter() + duration_s
        lurk_s = min(_MAX_LURK_S, duration_s * _MAX_LURK_SHARE)
        wire = WireClient(self._destination, self._ledger, timeout_s=self._config.request_timeout_s, max_lurk_s=lurk_s)
        num_lurkers = int(self._config.concurrency * _LURKER_SHARE)
        async with self._open_client(self._ledger) as client, asyncio.TaskGroup() as clients:
            workers = (self._work(self._deeds_of_workers(client, wire), end_s) for _ in range(self._config.concurrency))
            lurkers = (self._work(_deeds_of_lurkers(wire), end_s) for _ in range(num_lurkers))
            tasks = [clients.create_task(work) for work in (*workers, *lurkers, self._burst(client, end_s))]
            await asyncio.wait(tasks, timeout=duration_s + _MAX_TAIL_S)
            for task in tasks:
                task.cancel()

    def _open_client(self, ledger: Ledger) -> SoakClient:
        return SoakClient(self._destination, ledger, timeout_s=self._config.request_timeout_s)

    def _deeds_of_workers(self, client: SoakClient, wire: WireClient) -> list[Deed]:
        def write_and_post(kind: str, writer: Writer) -> Callable[[Random], Awaitable[object]]:
            return lambda random: client.post(kind, writer.path, writer.write(random, self._measure))

        def vanish(random: Random) -> Awaitable[object]:
            writer = GOOD[random.choice(("completion", "chat"))]
            return client.vanish("vanishing", writer.path, writer.write(random, self._measure), random)

        def compress(random: Random) -> Awaitable[object]:
            data = gzip.compress(msgspec.json.encode({"prompt": build_prompt(64, seed=str(random.random()))}))
            headers = client.headers | {"Content-Encoding": "gzip"}
            return client.send("compressed", "POST", "/v1/completions", data=data, headers=headers)

        def break_json(random: Random) -> Awaitable[object]:
            data = random.choice((b"", b"{", b"[]", b"[" * 5000, b"\xff\xfe", b'{"prompt": "\\ud800"}', b"null"))
            return client.send("bad JSON", "POST", "/v1/chat/completions", data=data)

        return [
            *(
                Deed(kind, _WEIGHTS[kind], write_and_post(kind, writer))
                for kind, writer in (self._good | dict(BAD)).items()
            ),
            Deed("vanishing", 6, vanish),
            Deed("scrape", 3, lambda _: client.send("scrape", "GET", "/metrics")),
            Deed("page", 4, lambda random: client.send("page", "GET", random.choice(_PAGES))),
            Deed("bad JSON", 3, break_json),
            Deed("compressed", 1, compress),
            Deed("malformed", 3, wire.talk_nonsense),
            Deed("pipelined", 3, wire.pipeline),
            Deed("oversized", 1, wire.announce_too_much),
            Deed("oversized", 0.2, wire.send_too_much),
        ]

    async def _work(self, deeds: Sequence[Deed], end_s: float) -> None:
        random = Random(self._random.random())
        weights = [deed.weight for deed in deeds]
        for _ in _until(end_s):
            (deed,) = random.choices(deeds, weights)
            try:
                await deed.act(random)
            except asyncio.CancelledError:
                self._ledger.enter(deed.kind, "left")
                raise

    async def _burst(self, client: SoakClient, end_s: float) -> None:
        """Many short requests at once, from time to time."""
        while self._config.burst and perf_counter() + self._config.burst_interval_s < end_s:
            await asyncio.sleep(self._config.burst_interval_s)
            body = {"prompt": build_prompt(16, seed=str(self._random.random())), "max_tokens": 2}
            requests = (client.post("burst", "/v1/completions", body) for _ in range(self._config.burst))
            await asyncio.gather(*requests)


def _deeds_of_lurkers(wire: WireClient) -> list[Deed]:
    return [
        Deed("idle", 3, wire.say_nothing),
        Deed("half a request", 2, wire.break_off),
        Deed("slow reader", 5, wire.read_slowly),
        Deed("stalled reader", 2, wire.read_nothing),
    ]


def _until(end_s: float) -> Iterator[None]:
    while perf_counter() < end_s:
        yield
