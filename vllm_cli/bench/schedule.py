"""The order of rounds: sides alternate, so that changes of the machine over time affect all sides alike."""

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from vllm_cli.bench.config import ServersConfig

D = TypeVar("D")
F = TypeVar("F")

Rounds = Mapping[tuple[int, D], list[F]]
"""Figures of the rounds by side and condition."""


class ScheduledRound(NamedTuple, Generic[D]):
    """One round of one side under one condition, such as a number of requests in flight."""

    condition: D
    round_number: int
    side: int


def schedule_rounds(conditions: Sequence[D], config: ServersConfig) -> list[ScheduledRound[D]]:
    """Sides alternate round by round.

    With idle policy `stop`, a change of sides costs a start: a side measures all conditions in a row.
    """
    sides, rounds = range(len(config.targets)), range(config.num_rounds)
    if config.idle == "stop":
        return [
            ScheduledRound(condition, number, side) for number in rounds for side in sides for condition in conditions
        ]
    return [ScheduledRound(c, number, side) for c in conditions for number in rounds for side in sides]
