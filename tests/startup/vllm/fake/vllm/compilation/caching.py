"""Computes the name of a compiled model."""

from vllm import envs
from vllm.config.utils import hash_factors
from vllm.config.vllm import VllmConfig


def aot_compile_hash_factors(vllm_config: VllmConfig) -> list[str]:
    return [hash_factors(envs.compile_factors()), vllm_config.compute_hash()]
