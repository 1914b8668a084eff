"""Runs a soak: starts the server, warm-up, pause, judged load, pause, stops the server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from envs.redaction import hide_in_command
from tools.soak.config import SoakConfig
from tools.soak.ledger import Ledger
from tools.soak.results import SOAK_SCHEMA_VERSION, Gauges, HealthFigures, SoakResult, SoakSample, Stage
from tools.soak.samples import read_gauges, sample_processes
from tools.soak.traffic import SoakTraffic
from tools.soak.verdict import count_rests, find_problems, has_settled, measure_growths
from vllm_cli.bench.config import BenchConfig
from vllm_cli.bench.figures import percentile_ms
from vllm_cli.bench.load import open_session
from vllm_cli.bench.probe import HealthProbe, ProbeSamples
from vllm_cli.bench.progress import Progress
from vllm_cli.bench.readiness import ReadyServer, wait_until_healthy
from vllm_cli.bench.request_format import request_headers
from vllm_cli.bench.results import describe_machine, format_now
from vllm_cli.bench.target import CommandTarget
from vllm_cli.interruption import run_interruptibly
from vllm_cli.supervised_command import CommandEndedError

_POLL_S: Final = 0.5
_NUM_EQUAL_SAMPLES: Final = 3
"""Equal samples in a row that end a pause."""
_NUM_REPORTS: Final = 30


def run_soak(config: SoakConfig, progress: Progress) -> SoakResult:
    """Soaks one server; must be on the main thread, to set signal handlers.

    Raises:
        TargetStartError: the server was not ready in time.
        CommandEndedError: it exited under the load.
    """
    return run_interruptibly(_Soak(config, progress).run())


@dataclass(frozen=True)
class _Pause:
    """A pause without load."""

    sample: SoakSample
    gauges: Gauges
    settled_after_s: float | None
    """None if not everything was released in time."""


class _Soak:
    """One run in progress."""

    def __init__(self, config: SoakConfig, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self._target = CommandTarget(config.target, config.target.command or "")
        self._ledger = Ledger()
        self._samples: list[SoakSample] = []
        self._stage: Stage = "warm-up"
        self._begin_s = 0.0

    async def run(self) -> SoakResult:
        created_at = format_now()
        with closing(self._target):
            server = await self._start()
            traffic = SoakTraffic(self._config, server.destination, self._ledger)
            left_out = await traffic.leave_out_rejected()
            if left_out:
                self._progress.report(f"left out, because the server rejects it: {', '.join(left_out)}")
            with HealthProbe(self._config.api_key) as probe:
                probe.start(server.destination.base_url)
                self._begin_s = perf_counter()
                self._progress.begin(_NUM_REPORTS)
                async with self._sampling():
                    before = await self._warm_up(traffic)
                    judged_from_s = self._now_s
                    await self._load(traffic, "load", self._config.judged_s)
                judged_to_s = self._now_s
                self._stage = "end"
                after = await self._pause(before.sample)
                probes = probe.finish()
        health = self._measure_health(probes, judged_from_s, judged_to_s)
        return self._assemble(created_at, server, left_out, (before, after), health)

    @property
    def _now_s(self) -> float:
        return perf_counter() - self._begin_s

    async def _start(self) -> ReadyServer:
        config = self._config
        self._progress.report(f"waiting for {hide_in_command(config.target.command or '')}")
        bench_config = BenchConfig(
            targets=(config.target,),
            api_key=config.api_key,
            ready_timeout_s=config.ready_timeout_s,
            request_timeout_s=config.request_timeout_s,
        )
        self._target.start()
        server = await wait_until_healthy(self._target, bench_config)
        self._progress.report(f"ready after {server.ready_after_s:.1f} s")
        return server

    async def _warm_up(self, traffic: SoakTraffic) -> _Pause:
        await self._load(traffic, "warm-up", self._config.warm_up_s)
        self._stage = "rest"
        return await self._pause(None)

    async def _load(self, traffic: SoakTraffic, stage: Stage, duration_s: float) -> None:
        self._stage = stage
        await traffic.run(duration_s)

    async def _pause(self, before: SoakSample | None) -> _Pause:
        """Waits until samples are equal and nothing of the load is left, or until the time-out."""
        begin_s = perf_counter()
        samples: list[SoakSample] = []
        while True:
            self._target.poll()
            self._target.ensure_alive()
            samples = [*samples, await self._take_sample()][-_NUM_EQUAL_SAMPLES:]
            gauges = await self._read_gauges()
            is_stable = len(samples) == _NUM_EQUAL_SAMPLES and len({_countables(sample) for sample in samples}) == 1
            is_settled = is_stable and has_settled(count_rests(before or samples[-1], samples[-1]), gauges)
            waited_s = perf_counter() - begin_s
            if is_settled or waited_s > self._config.settle_timeout_s:
                return _Pause(samples[-1], gauges, waited_s if is_settled else None)
            await asyncio.sleep(_POLL_S)

    @asynccontextmanager
    async def _sampling(self) -> AsyncIterator[None]:
        """Takes samples periodically; ends the run if the server has exited."""
        try:
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(self._sample())
                yield
                task.cancel()
        except BaseExceptionGroup as group:
            if died := group.subgroup(CommandEndedError):
                raise _first_of(died) from None
            raise

    async def _sample(self) -> None:
        report_s = self._config.minutes * 60 / _NUM_REPORTS
        due_s = 0.0
        num_reports = 0
        while True:
            self._target.ensure_alive()
            sample = await self._take_sample()
            if sample.at_s >= num_reports * report_s and num_reports < _NUM_REPORTS:
                num_reports += 1
                self._progress.step(self._describe(sample))
            due_s = max(due_s + self._config.sample_interval_s, self._now_s)
            await asyncio.sleep(due_s - self._now_s)

    async def _take_sample(self) -> SoakSample:
        groups = await asyncio.to_thread(sample_processes, self._target.root_pid)
        sample = SoakSample(
            at_s=round(self._now_s, 3), stage=self._stage, groups=groups, num_requests=self._ledger.num_requests
        )
        self._samples.append(sample)
        return sample

    async def _read_gauges(self) -> Gauges:
        async with open_session(self._config.request_timeout_s) as session:
            return await read_gauges(session, self._target.base_url, request_headers(self._config.api_key))

    def _describe(self, sample: SoakSample) -> str:
        tree, ledger = sample.tree, self._ledger
        return (
            f"{sample.at_s / 60:.1f} min, {sample.stage}: {tree.rss_bytes / (1 << 20):.0f} MiB, {tree.num_fds} files, "
            f"{tree.num_threads} threads; {ledger.num_requests} requests, {ledger.count('shed')} shed, "
            f"{ledger.count('failed')} failed, {ledger.count('lost')} lost"
        )

    def _measure_health(self, probes: ProbeSamples, from_s: float, to_s: float) -> HealthFigures:
        begin_ns = int(self._begin_s * 1e9)
        due_s = [(due_ns - begin_ns) / 1e9 for due_ns in probes.due_ns]
        judged = [
            latency_ns for at_s, latency_ns in zip(due_s, probes.latencies_ns, strict=True) if from_s <= at_s <= to_s
        ]
        return HealthFigures(
            num_probes=len(judged),
            num_errors=probes.num_errors,
            p50_ms=percentile_ms(judged, 50),
            p99_ms=percentile_ms(judged, 99),
            max_ms=percentile_ms(judged, 100),
        )

    def _assemble(
        self,
        created_at: str,
        server: ReadyServer,
        left_out: list[str],
        pauses: tuple[_Pause, _Pause],
        health: HealthFigures,
    ) -> SoakResult:
        config, ledger = self._config, self._ledger
        before, after = pauses
        growths = measure_growths([s for s in self._samples if s.stage == "load"], config.max_growth)
        rests = count_rests(before.sample, after.sample)
        problems = find_problems(growths=growths, rests=rests, gauges=after.gauges, health=health, ledger=ledger)
        return SoakResult(
            schema_version=SOAK_SCHEMA_VERSION,
            created_at=created_at,
            machine=describe_machine(),
            target=hide_in_command(config.target.command or ""),
            model=server.destination.model,
            version=server.version,
            ready_after_s=server.ready_after_s,
            settings=config.load_settings,
            left_out=left_out,
            growths=growths,
            rests=rests,
            gauges=after.gauges,
            settled_after_s=after.settled_after_s,
            health=health,
            endings={kind: {str(e): n for e, n in endings.items()} for kind, endings in sorted(ledger.endings.items())},
            statuses={str(status): num for status, num in sorted(ledger.statuses.items())},
            problems=problems,
            messages=ledger.messages,
            samples=self._samples,
        )


def _first_of(group: BaseExceptionGroup[CommandEndedError]) -> CommandEndedError:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first


def _countables(sample: SoakSample) -> tuple[tuple[str, int, int, int], ...]:
    return tuple(
        (who, group.num_fds, group.num_threads, group.num_processes) for who, group in sorted(sample.groups.items())
    )
