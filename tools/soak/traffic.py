"""The mixed load of a soak: weighted kinds of requests, and bursts that exceed the server's queue."""

import asyncio
import gzip
from collections.abc import Awaitable, Callable, Iterator, Sequence
from random import Random
from time import perf_counter
from typing import Final, NamedTuple

import msgspec

from tools.soak.bodies import BAD, GOOD, Sizes, Writer
from tools.soak.client import SoakClient
from tools.soak.config import SoakConfig
from tools.soak.ledger import Ledger
from tools.soak.wire import WireClient
from vllm_cli.bench.request_format import Destination, build_prompt

_PAGES: Final = ("/v1/models", "/version", "/", "/load", "/openapi.json", "/no-such-page", "/v1/models/no-such-model")
_HOLDER_SHARE: Final = 0.5
"""Clients that only hold connections, per active client."""
_MAX_TAIL_S: Final = 60.0
"""Time for unfinished requests after the end of the load; then the clients disconnect."""
_MAX_HOLD_S: Final = 25.0
"""A little longer than the time-out of servers for an unfinished request."""
_MAX_HOLD_SHARE: Final = 0.2


_ALL_TOKENS: Final = {"prompt": "a", "max_tokens": 1, "logprobs": -1}
"""Fills a cache of tokens' texts, which would grow during the whole run; servers reject it without
`--max-logprobs -1`."""


class Action(NamedTuple):
    """One action that clients repeat at random, by weight."""

    kind: str
    weight: float
    act: Callable[[Random], Awaitable[object]]


class SoakTraffic:
    """Puts one server under load for a given time; `run` may be called several times."""

    def __init__(self, config: SoakConfig, destination: Destination, ledger: Ledger) -> None:
        self._config = config
        self._destination = destination
        self._ledger = ledger
        self._sizes = Sizes(prompt_tokens=config.prompt_tokens, max_tokens=config.max_tokens)
        self._good = dict(GOOD)
        self._random = Random(config.seed)

    async def leave_out_rejected(self) -> list[str]:
        """Sends each kind once; leaves out the kinds that the server rejects, and returns their names."""
        rejected = []
        async with self._open_client(Ledger()) as client:
            await client.post("all tokens", "/v1/completions", _ALL_TOKENS)
            for kind, writer in GOOD.items():
                status = await client.post(kind, writer.path, writer.write(Random(kind), self._sizes))
                if status is not None and 400 <= status < 500:
                    rejected.append(kind)
                    del self._good[kind]
        return rejected

    async def run(self, duration_s: float) -> None:
        """Puts the server under load; all connections are closed on return."""
        end_s = perf_counter() + duration_s
        hold_s = min(_MAX_HOLD_S, duration_s * _MAX_HOLD_SHARE)
        wire = WireClient(self._destination, self._ledger, timeout_s=self._config.request_timeout_s, max_hold_s=hold_s)
        num_holders = int(self._config.concurrency * _HOLDER_SHARE)
        async with self._open_client(self._ledger) as client, asyncio.TaskGroup() as clients:
            actions = self._actions_of_workers(client, wire)
            workers = (self._work(actions, end_s) for _ in range(self._config.concurrency))
            holders = (self._work(_actions_of_holders(wire), end_s) for _ in range(num_holders))
            tasks = [clients.create_task(work) for work in (*workers, *holders, self._burst(client, end_s))]
            await asyncio.wait(tasks, timeout=duration_s + _MAX_TAIL_S)
            for task in tasks:
                task.cancel()

    def _open_client(self, ledger: Ledger) -> SoakClient:
        return SoakClient(self._destination, ledger, timeout_s=self._config.request_timeout_s)

    def _actions_of_workers(self, client: SoakClient, wire: WireClient) -> list[Action]:
        def write_and_post(kind: str, writer: Writer) -> Callable[[Random], Awaitable[object]]:
            return lambda random: client.post(kind, writer.path, writer.write(random, self._sizes))

        def disconnect(random: Random) -> Awaitable[object]:
            writer = GOOD[random.choice(("completion", "chat"))]
            return client.disconnect("vanishing", writer.path, writer.write(random, self._sizes), random)

        def compress(random: Random) -> Awaitable[object]:
            data = gzip.compress(msgspec.json.encode({"prompt": build_prompt(64, seed=str(random.random()))}))
            headers = client.headers | {"Content-Encoding": "gzip"}
            return client.send("compressed", "POST", "/v1/completions", data=data, headers=headers)

        def break_json(random: Random) -> Awaitable[object]:
            data = random.choice((b"", b"{", b"[]", b"[" * 5000, b"\xff\xfe", b'{"prompt": "\\ud800"}', b"null"))
            return client.send("bad JSON", "POST", "/v1/chat/completions", data=data)

        return [
            *(
                Action(kind, writer.weight, write_and_post(kind, writer))
                for kind, writer in (self._good | {"bad body": BAD}).items()
            ),
            Action("vanishing", 6, disconnect),
            Action("scrape", 3, lambda _: client.send("scrape", "GET", "/metrics")),
            Action("page", 4, lambda random: client.send("page", "GET", random.choice(_PAGES))),
            Action("bad JSON", 3, break_json),
            Action("compressed", 1, compress),
            Action("malformed", 3, wire.send_malformed),
            Action("pipelined", 3, wire.pipeline),
            Action("oversized", 1, wire.announce_oversized),
            Action("oversized", 0.2, wire.send_oversized),
        ]

    async def _work(self, actions: Sequence[Action], end_s: float) -> None:
        random = Random(self._random.random())
        weights = [action.weight for action in actions]
        for _ in _until(end_s):
            (action,) = random.choices(actions, weights)
            try:
                await action.act(random)
            except asyncio.CancelledError:
                self._ledger.record(action.kind, "left")
                raise

    async def _burst(self, client: SoakClient, end_s: float) -> None:
        """Sends many short requests at once, periodically."""
        while self._config.burst and perf_counter() + self._config.burst_interval_s < end_s:
            await asyncio.sleep(self._config.burst_interval_s)
            body = {"prompt": build_prompt(16, seed=str(self._random.random())), "max_tokens": 2}
            requests = (client.post("burst", "/v1/completions", body) for _ in range(self._config.burst))
            await asyncio.gather(*requests)


def _actions_of_holders(wire: WireClient) -> list[Action]:
    return [
        Action("idle", 3, wire.hold_idle),
        Action("half a request", 2, wire.send_half),
        Action("slow reader", 5, wire.read_slowly),
        Action("stalled reader", 2, wire.read_nothing),
    ]


def _until(end_s: float) -> Iterator[None]:
    while perf_counter() < end_s:
        yield
