"""The order of rounds, and the measured servers, of which only one uses the machine at a time."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from envs.redaction import hide_in_command
from vllm_cli.bench.config import LoadConfig
from vllm_cli.bench.progress import Progress
from vllm_cli.bench.readiness import ReadyServer
from vllm_cli.bench.target import Target, TargetStartError, build_target
from vllm_cli.supervised_command import CommandEndedError
from vllm_cli.supervisor import EXIT_DELAY_S

C = TypeVar("C")
S = TypeVar("S", bound=ReadyServer)

Rounds = Mapping[tuple[int, C], list[Any]]
"""Figures of the rounds by side and condition."""


class ScheduledRound(NamedTuple, Generic[C]):
    """One round of one side under one condition, such as a number of requests in flight."""

    condition: C
    round_number: int
    side: int


def schedule_rounds(conditions: Sequence[C], config: LoadConfig) -> list[ScheduledRound[C]]:
    """Sides alternate round by round, so that changes of the machine over time affect all sides alike.

    With idle policy `stop`, a change of sides costs a start: a side measures all conditions in a row.
    """
    sides, rounds = range(len(config.targets)), range(config.num_rounds)
    if config.idle == "stop":
        return [ScheduledRound(c, number, side) for number in rounds for side in sides for c in conditions]
    return [ScheduledRound(c, number, side) for c in conditions for number in rounds for side in sides]


class TargetPool(Generic[S]):
    """Starts, resumes and stops servers.

    The idle policy decides what happens to a started server while another one is measured:
    `pause` freezes all its processes (SIGSTOP), so that it uses no processor time and resumes at once;
    `run` leaves it running; `stop` stops it and starts it again for its next round.
    """

    def __init__(self, config: LoadConfig, wait_ready: Callable[[Target], Awaitable[S]], progress: Progress) -> None:
        self._idle = config.idle
        self._wait_ready = wait_ready
        self._progress = progress
        self.targets: list[Target] = [build_target(spec) for spec in config.targets]
        self._running: Target | None = None
        self._server: S | None = None

    def close(self) -> None:
        """Stops all servers."""
        for target in self.targets:
            target.close()

    async def prepare(self) -> list[S]:
        """Starts every server once, so that a start that fails does so before anything is measured."""
        servers = []
        for target in self.targets:
            self._progress.report(
                f"{target.spec.name}: waiting for {hide_in_command(target.spec.command or target.base_url)}"
            )
            servers.append(await self._bring_up(target))
            self._progress.report(f"{target.spec.name}: ready after {servers[-1].ready_after_s:.1f} s")
        return servers

    async def measure_rounds(
        self,
        schedule: Sequence[ScheduledRound[C]],
        describe: Callable[[ScheduledRound[C]], str],
        measure: Callable[[ScheduledRound[C], S], Awaitable[Any]],
    ) -> Rounds[C]:
        """Measures the rounds in order, each on a running server; raises CommandEndedError if it exits."""
        rounds: defaultdict[tuple[int, C], list[Any]] = defaultdict(list)
        self._progress.begin(len(schedule))
        for scheduled in schedule:
            self._progress.step(describe(scheduled))
            target = self.targets[scheduled.side]
            figures = await measure(scheduled, await self._resume(target))
            if figures.num_errors:
                await asyncio.sleep(EXIT_DELAY_S)
                target.poll()
            target.ensure_alive()
            rounds[scheduled.side, scheduled.condition].append(figures)
        return rounds

    async def _resume(self, target: Target) -> S:
        """Makes this server the running one; checks the readiness of a server that was idle."""
        if self._running is target and self._server:
            return self._server
        try:
            return await self._bring_up(target)
        except TargetStartError as error:
            raise CommandEndedError(error.message) from error

    async def _bring_up(self, target: Target) -> S:
        if self._running and self._running is not target:
            self._make_idle(self._running)
        self._running = target
        target.start()
        target.resume()
        self._server = await self._wait_ready(target)
        return self._server

    def _make_idle(self, target: Target) -> None:
        if self._idle == "pause":
            target.pause()
        elif self._idle == "stop":
            target.close()
