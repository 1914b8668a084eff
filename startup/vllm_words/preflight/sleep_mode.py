"""Finds out, before vLLM starts, whether the model can sleep (release GPU memory), and at which level."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from startup.vllm_words.command_line import CommandLine
from startup.vllm_words.facts import read_facts
from startup.vllm_words.flags import flags_that_change
from startup.vllm_words.installed import Device, find_vllm
from startup.vllm_words.preflight.arguments import GivenStart
from startup.vllm_words.preflight.model import ModelOnDisk

_DEVICES: Final[tuple[Device, ...]] = ("cuda", "rocm", "xpu")
"""The devices that have sleep mode in vLLM 0.29 to 0.33 (`is_sleep_mode_available`)."""
_RELOADED: Final = ("auto", "hf", "safetensors")
"""Values of --load-format with which `reload_weights` can read the weights again."""
_NOT_RELOADED: Final = (
    "--quantization", "--kv-cache-dtype", "--calculate-kv-scales", "--speculative-config", "--enable-lora",
    "--cpu-offload-gb", "--offload-backend", "--hf-overrides", "--runner", "--convert", "--task", "--model-impl",
)  # fmt: skip
"""With these flags, the GPU holds more than the checkpoint's weights, or holds them in another form."""
_PLAIN: Final = ("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3")
"""Model types that have only parameters and buffers on the GPU. vLLM reloads parameters and keeps buffers.

Other model types would lose further tensors: slopes of ALiBi, products of MLA, maps and workspaces of
experts.
"""
_OTHER: Final = ("quantization_config", "compression_config", "auto_map")
"""A model whose config.json has one of these keys is not plain."""


def can_sleep(variables: Mapping[str, str]) -> str:
    """Why a model of the installed vLLM cannot sleep with these environment variables. Empty if it can."""
    vllm = find_vllm()
    if vllm is None:
        return "vLLM is not installed"
    device = "cpu" if variables.get("VLLM_TARGET_DEVICE", "").lower() == "cpu" else vllm.device
    if device not in _DEVICES or read_facts(vllm).has_other_platform:
        return f"this vLLM, for {device}, has no sleep mode, or a plugin decides about it"
    if variables.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        return "vLLM's Rust frontend does not pass the router's words on to the engine"
    return ""


def deepest_level(words: Sequence[str]) -> int:
    """The deepest level of sleep from which the model wakes unchanged. 0 if sleep mode must stay off.

    `words` are the words after `vllm serve`. Level 2 drops the weights, and vLLM's `reload_weights` reads
    them again. This restores a plain text model completely.
    """
    vllm, line = find_vllm(), CommandLine.of(words)
    if line.has(*flags_that_change("elsewhere"), "--kv-transfer-config") and not line.has("--enable-sleep-mode"):
        return 0
    if vllm is None or line.has(*_NOT_RELOADED) or line.request.load_format not in _RELOADED:
        return 1
    config = ModelOnDisk(GivenStart(vllm, line)).config
    return 2 if _is_plain(config) else 1


def _is_plain(config: Mapping[str, Any]) -> bool:
    architectures = [str(name) for name in config.get("architectures") or ()]
    is_for_text = len(architectures) == 1 and architectures[0].endswith("ForCausalLM")
    return is_for_text and config.get("model_type") in _PLAIN and not any(map(config.get, _OTHER))
