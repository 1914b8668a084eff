"""`bench liveness`: requests that are expensive to prepare, and the latency of `/health` meanwhile."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from time import perf_counter
from typing import Any, Final

from vllm_cli.bench.benchmark import LoadBenchmark
from vllm_cli.bench.liveness.config import Kind, LivenessConfig, PayloadShape
from vllm_cli.bench.liveness.figures import LIVENESS_METRICS, LivenessFigures, measure_liveness
from vllm_cli.bench.liveness.loop_lag import LoopLag, find_loop_delays, read_loop_lag
from vllm_cli.bench.liveness.payloads import build_requests
from vllm_cli.bench.load import LoadSamples, generate_load, open_session
from vllm_cli.bench.probe import HealthProbe
from vllm_cli.bench.readiness import ReadyServer, wait_until_healthy
from vllm_cli.bench.request import EncodedRequest
from vllm_cli.bench.results import Measured
from vllm_cli.bench.target import Target

_MAX_WARM_UP: Final = 32
"""Requests of a warm-up: enough for everything that a server does only once."""
_FEW_PROBES: Final = 100
"""With fewer probes, the p99 is the maximum."""
_LATE_PROBE_SHARE: Final = 0.5
"""Above this share of a latency, the probe process's own delay is a problem."""


class LivenessBenchmark(LoadBenchmark[Kind, ReadyServer]):
    """A condition is a kind of load."""

    _config: LivenessConfig
    name = "liveness"
    metrics = LIVENESS_METRICS

    @property
    def conditions(self) -> Sequence[Kind]:
        return self._config.kinds

    async def wait_ready(self, target: Target) -> ReadyServer:
        return await wait_until_healthy(target, self._config)

    async def warm_up(self, condition: Kind, server: ReadyServer) -> None:
        num_requests = min(self._config.requests_of(condition), _MAX_WARM_UP)
        await self._load(self._build(condition, server, num_requests, "warm-up"), condition)

    async def measure_round(self, condition: Kind, number: int, server: ReadyServer) -> LivenessFigures:
        requests = self._build(condition, server, self._config.requests_of(condition), str(number))
        duration_s = self._config.duration_s
        before = await self._read_lag(server)
        with HealthProbe(self._config.api_key, wants_realtime=True) as probe:
            probe.start(server.base_url)
            load = await self._load(_repeat(requests, duration_s) if duration_s else requests, condition)
            probes = probe.finish()
        delays = find_loop_delays(before, await self._read_lag(server))
        return measure_liveness(
            load, probes, delays, num_different=len(requests), accepted_statuses=self._config.accepted_statuses
        )

    def name_condition(self, condition: Kind) -> str:
        return f"{condition}, {self._config.concurrency_of(condition)} at once"

    def title(self, condition: Kind) -> str:
        config = self._config
        amount = f"{config.duration_s:g} s" if config.duration_s else f"{config.requests_of(condition)} requests"
        return f"{self.name_condition(condition)}: {amount} a round"

    def describe_settings(self) -> Iterator[str]:
        for kind in self._config.kinds:
            yield f"{kind}: {_describe_payload(self._config.shape)[kind]}"

    def find_problems(self, side: Any, measured: Measured[LivenessFigures]) -> Iterator[str]:
        yield from _describe_failures(measured)
        if num_repeated := sum(figures.num_repeated for figures in measured.rounds):
            yield f"{num_repeated} requests repeat an earlier one of the same round; more --requests avoid that"
        if (num_probes := min(figures.num_probes for figures in measured.rounds)) < _FEW_PROBES:
            yield f"only {num_probes} probes in a round; --duration makes rounds longer"
        yield from super().find_problems(side, measured)
        if any(figures.is_loop_lag_bound for figures in measured.rounds):
            yield "the event loop lag max is a bound: the server's gauge still held a longer lag from before the round"
        lag, health = measured.summary.get("probe_lag_p99_ms"), measured.summary.get("health_p99_ms")
        if lag and health and lag.median > _LATE_PROBE_SHARE * health.median:
            late = f"{lag.median:.1f} ms late (p99)"
            yield f"the probe's own process woke up {late}: part of /health's p99 is the machine's"
            if not all(figures.is_probe_realtime for figures in measured.rounds):
                yield "run as root, the benchmark gives that process real-time priority"

    def _build(self, kind: Kind, server: ReadyServer, num_requests: int, stage: str) -> list[EncodedRequest]:
        seed = f"{self._config.seed}/{stage}"
        return build_requests(kind, self._config.shape, server.destination, num_requests=num_requests, seed=seed)

    async def _load(self, requests: Iterable[EncodedRequest], kind: Kind) -> LoadSamples:
        config = self._config
        concurrency = config.concurrency_of(kind)
        return await generate_load(requests, concurrency=concurrency, timeout_s=config.request_timeout_s)

    async def _read_lag(self, server: ReadyServer) -> LoopLag:
        async with open_session(self._config.request_timeout_s) as session:
            return await read_loop_lag(session, server.destination)


def _repeat(requests: list[EncodedRequest], duration_s: float) -> Iterator[EncodedRequest]:
    """Cycles through the requests until the time is over."""
    end_s = perf_counter() + duration_s
    for request in cycle(requests):
        if perf_counter() >= end_s:
            return
        yield request


def _describe_payload(shape: PayloadShape) -> dict[Kind, str]:
    conversation = f"conversations of {shape.turns} messages with {shape.turn_chars} characters each"
    answer = f"{shape.max_tokens} new token{'s' if shape.max_tokens > 1 else ''}"
    return {
        "tokenize-chat": f"/tokenize, {conversation}",
        "chat": f"/v1/chat/completions, {conversation}, {answer}",
        "images": f"/v1/chat/completions, a text and a JPEG of {shape.image_px}x{shape.image_px} pixels, {answer}",
        "prompt_embeds": f"/v1/completions, embeddings of [{shape.embed_rows}, {shape.embed_hidden}] "
        f"bfloat16, {answer}",
        "pooling": f"/v1/embeddings, {shape.batch} texts of {shape.turn_chars} characters",
    }


def _describe_failures(kind: Measured[LivenessFigures]) -> Iterator[str]:
    """One line for each status, with the message of the first response."""
    failures = [failure for figures in kind.rounds for failure in figures.failures]
    for status in dict.fromkeys(failure.status for failure in failures):
        alike = [failure for failure in failures if failure.status == status]
        outcome = "counted as served" if alike[0].is_accepted else "failed"
        yield f"{sum(failure.num for failure in alike)} requests {outcome}: {alike[0].message}"
