"""`bench serve`: completions, a number of them in flight or at a rate, and their throughput and latency."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from vllm_cli.bench.benchmark import LoadBenchmark
from vllm_cli.bench.load import LoadSamples, draw_arrivals, generate_load, generate_open_load
from vllm_cli.bench.probe import HealthProbe
from vllm_cli.bench.readiness import CompletionServer, wait_until_ready
from vllm_cli.bench.request import EncodedRequest
from vllm_cli.bench.request_format import RequestFormat, build_prompt
from vllm_cli.bench.results import Measured
from vllm_cli.bench.serve.config import OPEN_LOOP, ServeBenchConfig
from vllm_cli.bench.serve.results import LATE_MS, SERVE_METRICS, RoundFigures, ServeSide, measure_round
from vllm_cli.bench.target import Target

_OPEN_WARM_UP: Final = 8
"""Requests at once before an open loop."""


class ServeBenchmark(LoadBenchmark[int, CompletionServer]):
    """A condition is a number of requests in flight."""

    _config: ServeBenchConfig
    name = "serve"
    metrics = SERVE_METRICS
    side_type = ServeSide

    @property
    def conditions(self) -> Sequence[int]:
        return self._config.levels

    async def wait_ready(self, target: Target) -> CompletionServer:
        return await wait_until_ready(target, self._config)

    async def warm_up(self, condition: int, server: CompletionServer) -> None:
        num_at_once = condition or min(_OPEN_WARM_UP, self._config.requests_at(condition))
        requests = self._encode(server.request_format, num_at_once, seed=f"{condition}/warm-up")
        await generate_load(requests, concurrency=num_at_once, timeout_s=self._config.request_timeout_s)

    async def measure_round(self, condition: int, number: int, server: CompletionServer) -> RoundFigures:
        config, seed = self._config, f"{condition}/{number}"
        requests = self._encode(server.request_format, config.requests_at(condition), seed=seed)
        with HealthProbe(config.api_key) as probe:
            probe.start(server.base_url)
            load = await self._load(requests, condition, seed)
            return measure_round(load, probe.finish(), max_tokens=config.max_tokens)

    def side_facts(self, server: CompletionServer) -> dict[str, Any]:
        request_format = server.request_format
        has_ignore_eos = "ignore_eos" in request_format.optional
        return {"token_source": request_format.token_source, "has_ignore_eos": has_ignore_eos}

    def name_condition(self, condition: int) -> str:
        is_open = condition == OPEN_LOOP
        return f"{self._config.request_rate:g} requests/s" if is_open else f"{condition} at once"

    def title(self, condition: int) -> str:
        return f"{self.name_condition(condition)}: {self._config.requests_at(condition)} requests a round"

    def describe_settings(self) -> Iterator[str]:
        config = self._config
        prefix = f" after the same {config.shared_prefix_tokens}" if config.shared_prefix_tokens else ""
        prompts = f"prompts of about {config.prompt_tokens} tokens{prefix}"
        yield f"{config.path}, {prompts}, {config.max_tokens} new tokens, streamed, greedy"

    def describe_side(self, side: ServeSide) -> str:
        eos = "" if side.has_ignore_eos or not self._config.ignore_eos else "; does not accept ignore_eos"
        return f"; tokens by {side.token_source}{eos}{super().describe_side(side)}"

    def find_problems(self, side: ServeSide, measured: Measured[RoundFigures]) -> Iterator[str]:
        rounds = measured.rounds
        yield from dict.fromkeys(message for figures in rounds for message in figures.errors)
        if num_short := sum(figures.num_short for figures in rounds):
            yield f"{num_short} answers ended before {self._config.max_tokens} tokens"
        if num_late := sum(figures.num_late for figures in rounds):
            num_requests = sum(figures.num_requests for figures in rounds)
            worst_ms = max(figures.delay_max_ms or 0 for figures in rounds)
            yield (
                f"the load generator itself sent {num_late} of {num_requests} requests more than {LATE_MS} ms late, "
                f"by up to {worst_ms:.0f} ms"
            )
        yield from super().find_problems(side, measured)

    def _encode(self, request_format: RequestFormat, num_requests: int, *, seed: str) -> list[EncodedRequest]:
        """Requests whose prompts depend on the seeds only: every side gets the same prompts."""
        config = self._config
        seeds = (f"{config.seed}/{seed}/{index}" for index in range(num_requests))
        shared = build_prompt(config.shared_prefix_tokens, seed=str(config.seed)) if config.shared_prefix_tokens else ""
        prompts = (f"{shared} {build_prompt(config.prompt_tokens, seed=seed)}".lstrip() for seed in seeds)
        return [request_format.encode(prompt, max_tokens=config.max_tokens) for prompt in prompts]

    async def _load(self, requests: list[EncodedRequest], level: int, seed: str) -> LoadSamples:
        """Every side gets the requests at the same times, too."""
        rate, timeout_s = self._config.request_rate, self._config.request_timeout_s
        if rate is None:
            return await generate_load(requests, concurrency=level, timeout_s=timeout_s)
        dues_ns = draw_arrivals(len(requests), rate, seed=f"{self._config.seed}/{seed}")
        return await generate_open_load(requests, dues_ns=dues_ns, timeout_s=timeout_s)
