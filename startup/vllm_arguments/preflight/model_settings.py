"""Checks flags for length, heads and quantization against config.json, by vLLM's own rules.

A fault is an error only if no override, plugin, model class or file besides config.json can make the flag's
value valid. Other faults are warnings.
"""

from collections.abc import Iterator
from typing import Any, Final

from envs import foreign
from startup.session.preflight.checkpoint import LENGTH_KEYS, read_transformers
from startup.session.preflight.report import Finding, error, warning
from startup.vllm_arguments.preflight.arguments import GivenStart, name_problem
from startup.vllm_arguments.preflight.model import ModelOnDisk

_LONG: Final = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
_LENGTH: Final = "max_position_embeddings"
"""Every model class reads its longest sequence from this key. Without the key, a class may have a default."""
_OTHER_LENGTHS: Final = ("model_max_length", "max_target_positions", "max_source_positions")
"""Further keys for the longest sequence. If config.json has one of them, a fault is only a warning."""
_LENGTH_FLAGS: Final = ("--tokenizer", "--runner", "--convert")
_OTHER_CONFIGS: Final = ("--hf-overrides", "--speculative-config")
"""With one of these flags, vLLM uses another configuration than config.json."""
_ON: Final = ("1", "true")
_SENTENCES: Final = ("modules.json", "sentence_*_config.json")
"""Files of sentence-transformers, which may set another longest sequence."""
_SCALINGS: Final = ("rope_scaling", "rope_parameters")
_UNSCALED: Final = ("llama3", "longrope", "su")
"""RoPE kinds whose factor never allows longer sequences. For other kinds, this depends on vLLM's version."""
_HEADS: Final = ("num_attention_heads", "n_head")

_METHOD: Final = "--quantization"
_FAMILIES: Final = {"awq_marlin": "awq", "auto_awq": "awq", "gptq_marlin": "gptq", "auto_gptq": "gptq"}
"""Quantization method -> the method whose checkpoints it reads."""
_REPLACED: Final = ("", "auto-round", "mxfp4", "gpt_oss_mxfp4", "deepseek_v4_fp8", "modelopt")
"""vLLM replaces these quantization methods of a checkpoint by its own, whatever `--quantization` is."""
_FOR_ANY: Final = ("", "humming", "moe_wna16", "inc", "marlin")
"""Values of `--quantization` that fit several kinds of checkpoints."""
_SETTINGS: Final = {"awq": ("*quantize_config.json", "*quant_config.json"), "gptq": ("*quantize_config.json",)}
"""If config.json does not mention quantization, these methods need one of their files."""
_OTHER_SETTINGS: Final = "hf_quant_config.json"
"""A file that vLLM may read instead of config.json."""


def setting_findings(start: GivenStart, model: ModelOnDisk) -> Iterator[Finding]:
    """Yields findings about flags. Length and heads are checked only if vLLM uses config.json unchanged."""
    if model.config and not start.has(*_OTHER_CONFIGS) and not start.record.plugins:
        yield from _check_length(start, model)
        yield from _check_heads(start, model.config)
    yield from _check_quantization(start, model)


def _check_length(start: GivenStart, model: ModelOnDisk) -> Iterator[Finding]:
    wanted, config, text = start.value("--max-model-len"), model.config, _text_config(model.config)
    own = _own_length(text)
    if not isinstance(wanted, int) or own is None or wanted <= own or foreign.text_of(_LONG).strip().lower() in _ON:
        return
    is_plain = _is_flat(config) and _LENGTH in config and not any(key in config for key in _OTHER_LENGTHS)
    is_certain = is_plain and start.vllm.is_tested and not start.has(*_LENGTH_FLAGS)
    is_certain = is_certain and not _has_file(model, *_SENTENCES) and not _is_scaled_by_class(config)
    remedy = f"give at most {own}, or set {_LONG}=1"
    yield (error if is_certain else warning)(
        "max_model_len", f"--max-model-len {wanted} is more than the {own} tokens of the model's config.json: {remedy}"
    )


def _own_length(text: dict[str, Any]) -> int | None:
    """The longest sequence according to config.json. None if config.json has no limit."""
    lengths = [text[key] for key in LENGTH_KEYS if type(text.get(key)) is int and text[key] > 0]
    kinds = ((scaling, scaling.get("rope_type") or scaling.get("type")) for scaling in _scalings(text))
    factors = [float(scaling.get("factor") or 1.0) for scaling, kind in kinds if kind not in _UNSCALED]
    return int(max(lengths) * max([1.0, *factors])) if lengths else None


def _scalings(text: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the RoPE parameters of the whole model and of each kind of layer."""
    for found in map(text.get, _SCALINGS):
        if isinstance(found, dict):
            yield found
            yield from (nested for nested in found.values() if isinstance(nested, dict))


def _is_scaled_by_class(config: dict[str, Any]) -> bool:
    """Whether config.json has no RoPE parameters, and the model's class may have a factor of its own."""
    if any(config.get(key) for key in _SCALINGS):
        return False
    texts = read_transformers(f"models/{config.get('model_type')}/configuration_*.py")
    return any('"factor":' in text for text in texts)


def _check_heads(start: GivenStart, config: dict[str, Any]) -> Iterator[Finding]:
    text, ranks = _text_config(config), start.number("--tensor-parallel-size", 1)
    heads = next((text[key] for key in _HEADS if isinstance(text.get(key), int) and text[key] > 0), 0)
    if ranks > 1 and heads % ranks:
        fitting = next(size for size in range(ranks, 0, -1) if heads % size == 0)
        is_certain = start.vllm.is_tested and _is_flat(config) and sum(key in config for key in _HEADS) == 1
        what = f"--tensor-parallel-size {ranks} does not divide the model's {heads} attention heads"
        yield (error if is_certain else warning)("tensor_parallel", f"{what}: give {fitting}")


def _is_flat(config: dict[str, Any]) -> bool:
    """Whether no part of the model, such as a vision tower, has its own section in config.json."""
    parts = [value for value in config.values() if isinstance(value, dict)]
    return not any(key in part for part in parts for key in ("model_type", _LENGTH, *_HEADS))


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a multimodal model's language part. For other models, the whole configuration."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _check_quantization(start: GivenStart, model: ModelOnDisk) -> Iterator[Finding]:
    """Checks that vLLM has the method, and that it fits the checkpoint. A mismatch is only a warning."""
    wanted, method = str(start.value(_METHOD) or "").lower(), _method_of(model.config)
    family = _family(wanted)
    if wanted and not method and (problem := name_problem(start.record, _METHOD, wanted, wanted)):
        is_certain = bool(model.config) and start.is_known and not start.has("--hf-overrides")
        yield (error if is_certain and not _has_file(model, _OTHER_SETTINGS) else warning)("quantization", problem)
    elif wanted and not method and family in _SETTINGS and not _has_file(model, *_SETTINGS[family]):
        what = f"{_METHOD} {wanted} needs a checkpoint that is quantized with it, and {model.folder} is not"
        yield warning("quantization", f"{what}: leave it out, or take a quantized checkpoint")
    elif wanted not in _FOR_ANY and method not in _REPLACED and family != _family(method):
        what = f"{_METHOD} {wanted} does not fit the checkpoint, which is quantized with {method} (config.json)"
        yield warning("quantization", f"{what}: leave it out")
    elif not wanted and method not in _REPLACED and (problem := name_problem(start.record, _METHOD, method, method)):
        yield warning("quantization", f"config.json: {problem.replace(_METHOD, 'quantization')}")


def _has_file(model: ModelOnDisk, *patterns: str) -> bool:
    """Whether a file in the model's folder matches a pattern, or the model is not on disk."""
    return model.folder is None or any(any(model.folder.glob(pattern)) for pattern in patterns)


def _method_of(config: dict[str, Any]) -> str:
    """The quantization method in config.json, as vLLM reads it. Empty if the model is not quantized."""
    for owner in (config, _text_config(config)):
        found = owner.get("quantization_config") or owner.get("compression_config")
        if isinstance(found, dict):
            if "producer" in found or "quantization" in found:
                return "modelopt"
            return str(found.get("quant_method") or "").lower().replace("_tensors", "-tensors")
    return ""


def _family(method: str) -> str:
    return "modelopt" if method.startswith("modelopt") else _FAMILIES.get(method, method)
