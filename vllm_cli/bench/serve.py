"""`bench serve` measures throughput and latency of completions, and of `/health` under that load."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from time import perf_counter_ns, process_time_ns
from typing import Any

from vllm_cli.bench.probe import HealthProbe, ProbeSamples
from vllm_cli.bench.readiness import ReadyServer, wait_until_ready
from vllm_cli.bench.report import Figures, Metric, Result, Side, percentiles_ms
from vllm_cli.bench.request import CompletionFormat, RequestSample, build_prompt, open_session, send_request
from vllm_cli.bench.target import BenchConfig, Target, describe
from vllm_cli.supervisor import EXIT_DELAY_S
from vllm_cli.terminal import Reporter

_NUM_ERROR_MESSAGES = 3


@dataclass(frozen=True)
class LoadSamples:
    """The samples of one round."""

    samples: list[RequestSample]
    duration_ns: int
    """Time from the start of the first request to the end of the last request."""
    client_cpu_ns: int
    """Processor time of this process during the round. The server may have lacked this time."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig(BenchConfig):
    """The load of `bench serve`."""

    levels: tuple[int, ...]
    """The numbers of requests in flight. Each number is measured separately."""
    num_requests: int | None = None
    """Requests per level and round. If None, four times the requests in flight, and at least 8."""
    max_tokens: int = 64
    prompt_tokens: int = 64
    """Approximate number of a prompt's tokens that differ from other prompts."""
    shared_prefix_tokens: int = 0
    """Approximate number of tokens at the beginning that all prompts share."""
    idle: str = "pause"
    """`pause`: a started server is frozen while another one is measured. `run`: it continues to run."""
    seed: int = 0


_LATENCIES = (("ttft", "TTFT"), ("tpot", "TPOT"), ("itl", "inter-token"), ("e2e", "e2e"))
"""Names and labels of latencies: first text, time per further token, gap between pieces, whole answer."""
SERVE_METRICS = (
    Metric("output_tokens_per_s", "output tok/s"),
    Metric("requests_per_s", "requests/s"),
    *(Metric(f"{name}_{which}_ms", f"{label} {which} ms") for name, label in _LATENCIES for which in ("p50", "p99")),
    *(Metric(f"health_{which}_ms", f"/health {which} ms") for which in ("p50", "p99", "max")),
    Metric("num_errors", "failed requests", is_compared=False),
)


async def measure_serving(config: ServeConfig) -> Result:
    """Measures all sides in each round, so that changes of the machine affect all sides alike."""
    with ExitStack() as stack:
        reporter = stack.enter_context(closing(Reporter()))
        targets = [stack.enter_context(closing(Target(spec))) for spec in config.targets]
        servers = []
        for target in targets:
            reporter.note(f"{target.spec.name}: waiting for {describe(target.spec)}")
            server = await _use(target, targets, config)
            servers.append(server)
            if server.missing_graphs is not None:
                text = f"warning: {target.spec.name}: {server.missing_graphs}, which makes it slower"
                reporter.note(f"{text}. Wait with `vllm-cli wait --graphs`")
        rounds: list[defaultdict[str, list[Figures]]] = [defaultdict(list) for _ in targets]
        order = [(level, number) for level in config.levels for number in range(config.num_rounds)]
        for step, (level, number) in enumerate(order):
            for target, measured in zip(targets, rounds, strict=True):
                text = f"[{step + 1}/{len(order)}] {target.spec.name}: {level} at once, round {number + 1}"
                reporter.update(text, text)
                server = await _use(target, targets, config)
                if number == 0:
                    await _load(config, server, level, level, "warm-up")
                measured[f"{level} at once"].append(await _measure_round(config, target, server, level, number))
    return _build_result(config, servers, rounds)


async def _use(target: Target, targets: list[Target], config: ServeConfig) -> ReadyServer:
    """Starts or resumes this server, freezes the others, and waits until this server is ready."""
    for other in targets:
        if other is not target and config.idle == "pause":
            other.send("pause")
    target.start()
    target.send("resume")
    return await wait_until_ready(target, config)


async def _measure_round(config: ServeConfig, target: Target, server: ReadyServer, level: int, number: int) -> Figures:
    """Measures one round. Raises CommandEndedError if the server exits."""
    num_requests = config.num_requests or max(8, 4 * level)
    with HealthProbe(config.api_key) as probe:
        probe.start(target.base_url)
        load = await _load(config, server, level, num_requests, str(number))
        figures = compute_round(load, probe.finish(), max_tokens=config.max_tokens)
    if figures["num_errors"]:
        await asyncio.sleep(EXIT_DELAY_S)
        target.send("poll")
    target.ensure_alive()
    return figures


async def _load(config: ServeConfig, server: ReadyServer, level: int, num_requests: int, stage: str) -> LoadSamples:
    """Sends the requests of one round. Prompts depend only on the seed, so all sides get the same prompts."""
    shared = build_prompt(config.shared_prefix_tokens, seed=str(config.seed)) if config.shared_prefix_tokens else ""
    seeds = (f"{config.seed}/{level}/{stage}/{index}" for index in range(num_requests))
    prompts = (f"{shared} {build_prompt(config.prompt_tokens, seed=seed)}".lstrip() for seed in seeds)
    bodies = [server.form.encode(prompt, max_tokens=config.max_tokens) for prompt in prompts]
    return await generate_load(server.form, bodies, concurrency=level)


async def generate_load(form: CompletionFormat, bodies: Iterable[bytes], *, concurrency: int) -> LoadSamples:
    """Sends and times all requests, `concurrency` of them at once, over new keep-alive connections."""
    samples: list[RequestSample] = []
    remaining = iter(bodies)
    async with open_session() as session:

        async def work() -> None:
            for body in remaining:
                samples.append(await send_request(session, form, body))

        start_ns, cpu_start_ns = perf_counter_ns(), process_time_ns()
        async with asyncio.TaskGroup() as workers:
            for _ in range(concurrency):
                workers.create_task(work())
        return LoadSamples(samples, perf_counter_ns() - start_ns, process_time_ns() - cpu_start_ns)


def compute_round(load: LoadSamples, probes: ProbeSamples, *, max_tokens: int) -> dict[str, Any]:
    """The figures of one round. A failed request counts only as an error."""
    good = [sample for sample in load.samples if sample.error is None]
    failed = [sample.error for sample in load.samples if sample.error is not None]
    output_tokens = sum(sample.num_output_tokens for sample in good)
    duration_s = load.duration_ns / 1e9
    ttfts = [sample.ttft_ns for sample in good if sample.ttft_ns is not None]
    tpots = [sample.tpot_ns for sample in good if sample.tpot_ns is not None]
    gaps = [gap for sample in good for gap in sample.gaps_ns]
    return {
        "output_tokens_per_s": output_tokens / duration_s,
        "requests_per_s": len(good) / duration_s,
        **percentiles_ms("ttft", ttfts, 50, 99),
        **percentiles_ms("tpot", tpots, 50, 99),
        **percentiles_ms("itl", gaps, 50, 99),
        **percentiles_ms("e2e", [sample.e2e_ns for sample in good], 50, 99),
        **percentiles_ms("health", probes.latencies_ns, 50, 99, 100),
        "duration_s": duration_s,
        "num_requests": len(load.samples),
        "num_errors": len(failed),
        "num_short": sum(sample.num_output_tokens < max_tokens for sample in good),
        "prompt_tokens": sum(sample.usage.prompt_tokens for sample in good if sample.usage),
        "output_tokens": output_tokens,
        "num_probes": len(probes.latencies_ns),
        "num_probe_errors": probes.num_errors,
        "client_cpu_share": load.client_cpu_ns / load.duration_ns,
        "errors": list(dict.fromkeys(failed))[:_NUM_ERROR_MESSAGES],
    }


def _build_result(
    config: ServeConfig, servers: list[ReadyServer], rounds: list[defaultdict[str, list[Figures]]]
) -> Result:
    prefix = f" after the same {config.shared_prefix_tokens}" if config.shared_prefix_tokens else ""
    prompts = f"prompts of about {config.prompt_tokens} tokens{prefix}"
    sides = []
    for spec, server, measured in zip(config.targets, servers, rounds, strict=True):
        has_ignore_eos = "ignore_eos" in server.form.optional
        source = "usage" if server.counts_tokens else "chunks"
        eos = "" if has_ignore_eos else "; does not accept ignore_eos"
        sides.append(
            Side(
                name=spec.name,
                target=describe(spec),
                model=server.form.model,
                version=server.version,
                rounds=measured,
                note=f"; tokens by {source}{eos}",
                facts={"token_source": source, "has_ignore_eos": has_ignore_eos},
            )
        )
    problems = [line for side in sides for line in _find_problems(side, config)]
    num_errors = sum(figures["num_errors"] for side in rounds for measured in side.values() for figures in measured)
    return Result(
        benchmark="serve",
        metrics=SERVE_METRICS,
        settings=config.settings,
        description=[f"{config.path}, {prompts}, {config.max_tokens} new tokens, streamed, greedy"],
        sides=sides,
        problems=problems,
        has_failed=num_errors > 0,
    )


def _find_problems(side: Side, config: ServeConfig) -> Iterator[str]:
    for condition, rounds in side.rounds.items():
        where = f"{side.name}, {condition}"
        yield from dict.fromkeys(f"{where}: {message}" for figures in rounds for message in figures["errors"])
        if num_short := sum(figures["num_short"] for figures in rounds):
            yield f"{where}: {num_short} answers ended before {config.max_tokens} tokens"
        if num_probe_errors := sum(figures["num_probe_errors"] for figures in rounds):
            yield f"{where}: {num_probe_errors} probes of /health failed"
