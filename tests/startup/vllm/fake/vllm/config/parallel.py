"""How many engines a node has."""

from dataclasses import dataclass


@dataclass
class ParallelConfig:
    data_parallel_size_local: int = 1
