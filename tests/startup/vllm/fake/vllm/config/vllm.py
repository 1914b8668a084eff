"""The configuration for which a worker compiles its model."""

from dataclasses import dataclass, field
from typing import Any

from vllm.config.utils import get_hash_factors, hash_factors
from vllm.utils.hashing import safe_hash


@dataclass
class ModelConfig:
    model: str
    hf_config: str
    served_model_name: str = "not hashed"

    def compute_hash(self) -> str:
        return hash_factors(get_hash_factors(self, {"served_model_name"}))


@dataclass
class SchedulerConfig:
    max_num_seqs: int

    def compute_hash(self) -> str:
        factors: list[Any] = []
        factors.append(self.max_num_seqs)
        return safe_hash(str(factors).encode(), usedforsecurity=False).hexdigest()


@dataclass
class CompilationConfig:
    mode: int = 2
    cache_dir: str = ""


@dataclass
class VllmConfig:
    model_config: ModelConfig
    scheduler_config: SchedulerConfig
    compilation_config: CompilationConfig = field(default_factory=CompilationConfig)

    def compute_hash(self) -> str:
        factors = [self.model_config.compute_hash(), self.scheduler_config.compute_hash()]
        return safe_hash(str(factors).encode(), usedforsecurity=False).hexdigest()[:10]
