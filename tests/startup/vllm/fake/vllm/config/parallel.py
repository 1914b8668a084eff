"""The number of engines of a node, and whether they are repaired."""

from dataclasses import dataclass


@dataclass
class ParallelConfig:
    data_parallel_size_local: int = 1
    enable_fault_tolerance: bool = False
