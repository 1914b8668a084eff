"""Who is measured when: sides take turns, so that what the machine does over time hits all alike."""

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from vllm_cli.bench.config import IdlePolicy, TargetSpec

D = TypeVar("D")
F = TypeVar("F")

Rounds = Mapping[tuple[int, D], list[F]]
"""Figures of the rounds by side and discipline."""


class Lineup(Protocol):
    """Who is measured, and how often."""

    @property
    def targets(self) -> tuple[TargetSpec, ...]: ...
    @property
    def num_rounds(self) -> int: ...
    @property
    def idle(self) -> IdlePolicy:
        """What a started server does while another one is measured."""


class Turn(NamedTuple, Generic[D]):
    """One round of one side in one discipline, such as a number of requests in flight."""

    discipline: D
    round_number: int
    side: int


def plan_turns(disciplines: Sequence[D], lineup: Lineup) -> list[Turn[D]]:
    """Sides take turns round by round; where each turn costs a start of the server, it takes all disciplines in one."""
    sides, rounds = range(len(lineup.targets)), range(lineup.num_rounds)
    if lineup.idle == "stop":
        return [Turn(discipline, number, side) for number in rounds for side in sides for discipline in disciplines]
    return [Turn(discipline, number, side) for discipline in disciplines for number in rounds for side in sides]
