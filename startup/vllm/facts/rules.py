"""Rules between flags that vLLM checks itself: whether this version has them, by a pattern in its source.

Without the pattern the preflight does not apply the rule: a version may have lifted it.
"""

import re
from typing import Final, NamedTuple

from startup.vllm.facts.definitions import Definitions


class RuleSource(NamedTuple):
    """Where vLLM checks a rule."""

    modules: tuple[str, ...]
    """The places in the supported versions."""
    pattern: str
    """A regular expression for the source of the check."""


_CLI: Final = ("vllm.entrypoints.common.cli_args", "vllm.entrypoints.launchers.cli_args")
"""From vLLM 0.33 on, and before."""
_SERVER: Final = ("vllm.entrypoints.launchers.launcher", "vllm.entrypoints.openai.api_server")
_SERVE: Final = ("vllm.entrypoints.cli.serve",)
_ENGINE: Final = ("vllm.engine.arg_utils",)

RULES: Final = {
    "tool choice needs parser": RuleSource(_CLI, r"args\.enable_auto_tool_choice and not args\.tool_call_parser"),
    "logged outputs need requests": RuleSource(_CLI, r"args\.enable_log_outputs and not args\.enable_log_requests"),
    "chat template exists": RuleSource(_CLI, r"validate_chat_template\(args\.chat_template\)"),
    "per-request metrics need statistics": RuleSource(_CLI, r"enable-per-request-metrics requires engine statistics"),
    "keep-alive is not negative": RuleSource(_CLI, r"sse-keep-alive-interval must be a non-negative"),
    "grpc ports exclude each other": RuleSource(_CLI, r"--grpc and --grpc-port are mutually exclusive"),
    "headless has no API servers": RuleSource(_SERVE, r"cannot be \"\s*\"used with --headless"),
    "one load balancing": RuleSource(_SERVE, r"Cannot use more than one data parallel load balancing mode"),
    "served name needs model": RuleSource(
        ("vllm.utils.argparse_utils",), r"`model` should be provided as the first positional argument"
    ),
    "config needs model": RuleSource(("vllm.utils.argparse_utils",), r"No model specified! Please specify model"),
    "config is yaml": RuleSource(("vllm.utils.argparse_utils",), r"Config file must be of a yaml/yml type"),
    "speculative flags exclude keys": RuleSource(_ENGINE, r"--speculative-config\['\{key\}'\] are mutually exclusive"),
    "variables are all parsed": RuleSource(("vllm.v1.engine.core",), r"^\s+enable_envs_cache\(\)"),
    "batch holds sequences": RuleSource(
        ("vllm.config.scheduler",), r"max_num_batched_tokens < self\.max_num_seqs"
    ),
    "batch holds model length": RuleSource(
        ("vllm.config.scheduler",),
        r"max_num_batched_tokens < max_model_len\s+and not self\.enable_chunked_prefill",
    ),
    "cpu adapters": RuleSource(("vllm.config.lora",), r"max_cpu_loras < self\.max_loras"),
    "heads divide": RuleSource(("vllm.config.model",), r"total_num_attention_heads % tensor_parallel_size != 0"),
    "quantization fits checkpoint": RuleSource(("vllm.config.model",), r"elif self\.quantization != quant_method"),
    "quantization is known": RuleSource(("vllm.config.model",), r"self\.quantization not in supported_quantization"),
    "quantization is not deprecated": RuleSource(
        ("vllm.config.model",), r"self\.quantization in me_quant\.DEPRECATED_QUANTIZATION_METHODS"
    ),
    "quantization has settings": RuleSource(
        ("vllm.model_executor.model_loader.weight_utils",), r"Cannot find the config file for"
    ),
    "quantization needs capability": RuleSource(
        ("vllm.config.vllm",), r"capability < quant_config\.get_min_capability\(\)"
    ),
    "tool parser is known": RuleSource((_CLI[0], *_SERVER), r"invalid tool call parser"),
    "reasoning parser is known": RuleSource((_CLI[0], *_SERVER), r"invalid reasoning parser"),
    "memory of CPUs is reserved": RuleSource(
        ("vllm.v1.worker.cpu_worker",), r"less than desired CPU memory utilization"
    ),
    "length is limited": RuleSource(("vllm.config.model",), r"VLLM_ALLOW_LONG_MAX_MODEL_LEN"),
}  # fmt: skip


def read_rules(definitions: Definitions) -> tuple[str, ...]:
    """The rules that this vLLM has."""
    return tuple(name for name, rule in RULES.items() if _is_found(definitions, rule))


def _is_found(definitions: Definitions, rule: RuleSource) -> bool:
    modules = filter(None, map(definitions.module, rule.modules))
    return any(re.search(rule.pattern, module.text, re.MULTILINE) for module in modules)
