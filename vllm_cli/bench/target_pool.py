"""Owns the servers under test and sees to it that the one being measured has the machine to itself."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, Self, TypeVar

from vllm_cli.bench.errors import TargetDiedError, TargetStartError
from vllm_cli.bench.progress import Progress
from vllm_cli.bench.redaction import redact
from vllm_cli.bench.target import Target, build_target
from vllm_cli.bench.turns import Lineup, Rounds, Turn
from vllm_cli.supervisor import NOTICE_S


class Met(Protocol):
    """What is known about a server that has answered."""

    @property
    def ready_after_s(self) -> float: ...


class Measured(Protocol):
    """What a round found."""

    @property
    def num_errors(self) -> int: ...


S = TypeVar("S", bound=Met)
F = TypeVar("F", bound=Measured)
D = TypeVar("D")


class TargetPool(Generic[S]):
    """Starts, wakes and stops servers; a context manager that leaves none running.

    What a started server does while another one is measured is the idle policy:
    `pause` freezes all its processes (SIGSTOP), so that it takes no processor time and is back at once;
    `run` leaves it alone; `stop` ends it and starts it afresh for its next turn.
    """

    def __init__(self, lineup: Lineup, meet: Callable[[Target], Awaitable[S]], progress: Progress) -> None:
        self._idle = lineup.idle
        self._meet = meet
        self._progress = progress
        self.targets: list[Target] = [build_target(spec) for spec in lineup.targets]
        self._awake: Target | None = None
        self._server: S | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for target in self.targets:
            target.close()

    async def prepare(self) -> list[S]:
        """Bring up every server once, so that what cannot start fails before anything is measured."""
        servers = []
        for target in self.targets:
            self._progress.note(f"{target.spec.name}: waiting for {redact(target.spec.command or target.base_url)}")
            servers.append(await self._bring_up(target))
            self._progress.note(f"{target.spec.name}: ready after {servers[-1].ready_after_s:.1f} s")
        return servers

    async def take_turns(
        self,
        turns: Sequence[Turn[D]],
        describe: Callable[[Turn[D]], str],
        measure: Callable[[Turn[D], S], Awaitable[F]],
    ) -> Rounds[D, F]:
        """Measure one turn after the other, each on a server that runs; raises TargetDiedError when one has ended."""
        rounds: defaultdict[tuple[int, D], list[F]] = defaultdict(list)
        self._progress.begin(len(turns))
        for turn in turns:
            self._progress.step(describe(turn))
            target = self.targets[turn.side]
            figures = await measure(turn, await self._wake(target))
            if figures.num_errors:
                await asyncio.sleep(NOTICE_S)
                target.look()
            target.ensure_alive()
            rounds[turn.side, turn.discipline].append(figures)
        return rounds

    async def _wake(self, target: Target) -> S:
        """Make this server the one that runs; unless it ran already, it has just answered."""
        if self._awake is target and self._server:
            return self._server
        try:
            return await self._bring_up(target)
        except TargetStartError as error:
            raise TargetDiedError(error.message) from error

    async def _bring_up(self, target: Target) -> S:
        if self._awake and self._awake is not target:
            self._retire(self._awake)
        self._awake = target
        target.start()
        target.resume()
        self._server = await self._meet(target)
        return self._server

    def _retire(self, target: Target) -> None:
        if self._idle == "pause":
            target.pause()
        elif self._idle == "stop":
            target.close()
