"""Checks flags against the model, by rules that vLLM applies itself: length, heads, layers, quantization."""

from collections.abc import Iterator
from typing import Any, Final

from envs import foreign
from envs.suggestion import did_you_mean
from startup.preflight.memory_fit import LENGTH_KEYS
from startup.preflight.report import Finding, Severity, error, warning
from startup.vllm.preflight.arguments import CheckedStart
from startup.vllm.preflight.command_line import check_name
from startup.vllm.preflight.model import ModelChecks, read_sources
from startup.vllm.preflight.nvml import Gpu

_CHECK: Final = "quantization"
_ALLOW_DEPRECATED: Final = "--allow-deprecated-quantization"
_FAMILIES: Final = {"awq_marlin": "awq", "auto_awq": "awq", "gptq_marlin": "gptq", "auto_gptq": "gptq"}
"""Methods that read the same checkpoints as another one."""
_EXACT: Final = ("awq", "gptq", "fp8", "compressed-tensors", "quark", "torchao")
"""Families that vLLM never takes for another one, whatever else the checkpoint says."""
_REPLACED: Final = ("auto-round", "mxfp4", "gpt_oss_mxfp4", "deepseek_v4_fp8", "modelopt")
"""Methods of checkpoints for which vLLM chooses one of its own, whatever the flag says."""
_FOR_ANY: Final = ("humming", "moe_wna16", "inc", "marlin")
"""Values of the flag that fit to several kinds of checkpoints."""
_SETTINGS: Final = {"awq": ("quantize_config.json", "quant_config.json"), "gptq": ("quantize_config.json",)}
"""Families that need one of these files where config.json says nothing of quantization."""
_MODELOPT_FILE: Final = "hf_quant_config.json"
"""Settings that vLLM may read instead of those in config.json."""
_SPECIAL_MODELS: Final = "deepseek_v4"
"""Their class changes the method."""
_UNSCALED: Final = ("llama3", "longrope", "su")
"""Kinds of RoPE whose factor never makes the length longer; of others, versions of vLLM differ."""
_CERTAIN: Final = "max_position_embeddings"
"""The one key that each version reads as the limit; without it, a class may have another one by default."""
_OTHER_LENGTHS: Final = ("model_max_length", "max_target_positions", "max_source_positions")
"""Further keys that some models have; with one of them the limit is left to vLLM."""
_SENTENCE_FILES: Final = ("modules.json", "sentence_*_config.json")
"""Files of sentence-transformers, which may have another limit."""
_SCALINGS: Final = ("rope_scaling", "rope_parameters")
_LONG: Final = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
_HEADS: Final = ("num_attention_heads", "n_head")
_LAYERS: Final = ("num_hidden_layers", "n_layer", "num_layers")


def shape_findings(start: CheckedStart, model: ModelChecks) -> Iterator[Finding]:
    """Length, heads and layers; nothing without a configuration that vLLM reads as it is."""
    config = model.config
    if not config or start.has("--hf-overrides", "--speculative-config") or start.facts.plugins:
        return
    text = _text_config(config)
    yield from _check_length(start, model, config, text)
    yield from _check_heads(start, config, text)


def _check_length(
    start: CheckedStart, model: ModelChecks, config: dict[str, Any], text: dict[str, Any]
) -> Iterator[Finding]:
    wanted = start.value("--max-model-len")
    if not isinstance(wanted, int) or not start.facts.has_rule("length is limited"):
        return
    if wanted == 0 or wanted < -1:
        yield error("max_model_len", f"--max-model-len must be 1 or more, or auto, got {wanted}")
        return
    own = _own_length(text)
    if own is None or wanted <= own or foreign.text_of(_LONG).strip().lower() in ("1", "true"):
        return
    is_certain = config is text and _CERTAIN in config and not any(key in config for key in _OTHER_LENGTHS)
    is_certain = is_certain and not start.has("--tokenizer", "--config-format", "--runner", "--convert")
    is_certain = is_certain and not _has_sentence_files(model) and not _is_scaled_by_class(config)
    yield (error if is_certain else warning)(
        "max_model_len",
        f"--max-model-len {wanted} is more than the model's own limit of {own} tokens (config.json): give at most "
        f"{own}, or set {_LONG}=1",
    )


def _has_sentence_files(model: ModelChecks) -> bool:
    return model.folder is not None and any(any(model.folder.glob(name)) for name in _SENTENCE_FILES)


def _is_scaled_by_class(config: dict[str, Any]) -> bool:
    """Whether config.json leaves the RoPE to a class that has a factor of its own."""
    if any(config.get(key) for key in _SCALINGS):
        return False
    texts = read_sources("transformers", f"models/{config.get('model_type')}", "configuration_*.py")
    return any('"factor":' in text for text in texts)


def _own_length(text: dict[str, Any]) -> int | None:
    """The longest sequence by config.json; None if it may be more than can be computed here."""
    lengths = [text[key] for key in LENGTH_KEYS if isinstance(text.get(key), int) and text[key] > 0]
    if not lengths:
        return None
    factor = 1.0
    for scaling in _scalings(text):
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if kind not in _UNSCALED:
            factor = max(factor, float(scaling.get("factor") or 1.0))
    return int(max(lengths) * factor)


def _scalings(text: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The RoPE parameters, also those of each kind of layer."""
    for key in _SCALINGS:
        found = text.get(key)
        if isinstance(found, dict):
            yield found
            yield from (nested for nested in found.values() if isinstance(nested, dict))


def _check_heads(start: CheckedStart, config: dict[str, Any], text: dict[str, Any]) -> Iterator[Finding]:
    tensor, pipeline = start.number("--tensor-parallel-size", 1), start.number("--pipeline-parallel-size", 1)
    heads, layers = _first(text, _HEADS), _first(text, _LAYERS)
    if heads and tensor > 1 and heads % tensor and start.facts.has_rule("heads divide"):
        fitting = [size for size in range(tensor, 0, -1) if heads % size == 0]
        is_certain = config is text and sum(key in config for key in _HEADS) == 1
        yield (error if is_certain else warning)(
            "tensor_parallel",
            f"--tensor-parallel-size {tensor} does not divide the model's {heads} attention heads: give {fitting[0]}",
        )
    if layers and pipeline > layers:
        yield warning(
            "pipeline_parallel", f"--pipeline-parallel-size {pipeline} is more than the model's {layers} layers"
        )


def _first(text: dict[str, Any], keys: tuple[str, ...]) -> int:
    return next((text[key] for key in keys if isinstance(text.get(key), int) and text[key] > 0), 0)


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a multimodal model's configuration."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def quantization_findings(start: CheckedStart, model: ModelChecks) -> Iterator[Finding]:
    """What is known without the device; only the name without a configuration that vLLM reads as it is."""
    yield from _name_findings(start, model)
    if not _is_readable(start, model):
        return
    given, method = _given(start), _method_of(model.config)
    yield from _deprecated_findings(start, model, given, method)
    if given and method:
        yield from _mismatch_findings(start, model, given, method)
    elif given:
        yield from _settings_findings(start, model, given)
    elif method and start.facts.has_rule("quantization is known"):
        known = start.facts.registries.quantization_methods
        if known and method not in (*known, *_REPLACED):
            report = error if _is_certain(model) else warning
            yield report(
                _CHECK,
                f"config.json says that the checkpoint is quantized with {method!r}, which this vLLM does not have"
                f"{did_you_mean(method, known)}: take another checkpoint, or install a plugin for it",
            )


def device_quantization_findings(start: CheckedStart, model: ModelChecks, gpu: Gpu | None) -> Iterator[Finding]:
    """Whether the device can compute a quantized checkpoint: NVIDIA's first GPU, or AMD's if it is None."""
    given, method = _given(start), _method_of(model.config)
    if not method or method in _REPLACED or given in _FOR_ANY or not _is_readable(start, model):
        return
    facts, family = start.facts.quantization, _family(method)
    if gpu is not None:
        needed = [least for name, least in facts.min_capabilities.items() if _family(name) == family]
        capability = gpu.capability[0] * 10 + gpu.capability[1]
        if needed and 0 < capability < min(needed):
            is_certain = start.facts.has_rule("quantization needs capability") and family in _EXACT
            report = error if is_certain and _is_certain(model) else warning
            yield report(
                _CHECK,
                f"the checkpoint is quantized with {method}, which needs a GPU of compute capability "
                f"{min(needed) / 10:.1f}; GPU {gpu.number} ({gpu.name}) has {capability / 10:.1f}: take another "
                "checkpoint or GPU",
            )
    elif facts.on_rocm and not any(_family(name) == family for name in facts.on_rocm):
        yield warning(_CHECK, f"the checkpoint is quantized with {method}, which vLLM does not support on AMD's GPUs")


def _is_readable(start: CheckedStart, model: ModelChecks) -> bool:
    return bool(model.config) and not start.facts.plugins and not start.has("--hf-overrides")


def _given(start: CheckedStart) -> str:
    return str(start.value("--quantization") or "").lower()


def _method_of(config: dict[str, Any]) -> str:
    """The method that the checkpoint names, as vLLM reads it; empty for one that is not quantized."""
    nested = config.get("text_config")
    for owner in (config, nested if isinstance(nested, dict) else {}):
        found = owner.get("quantization_config") or owner.get("compression_config")
        if isinstance(found, dict):
            if "producer" in found or "quantization" in found:
                return "modelopt"
            return str(found.get("quant_method") or "").lower().replace("_tensors", "-tensors")
    return ""


def _family(method: str) -> str:
    return "modelopt" if method.startswith("modelopt") else _FAMILIES.get(method, method)


def _is_certain(model: ModelChecks) -> bool:
    """Whether no code but vLLM's own general one decides about the method, and no other file."""
    model_type = str(model.config.get("model_type", ""))
    has_code = "auto_map" in model.config or "speculators_config" in model.config or _SPECIAL_MODELS in model_type
    return not has_code and model.folder is not None and not (model.folder / _MODELOPT_FILE).exists()


def _name_findings(start: CheckedStart, model: ModelChecks) -> Iterator[Finding]:
    """The name of the flag; a quantized checkpoint may decide about the method, whatever the flag says."""
    if start.facts.plugins or _method_of(model.config):
        return
    is_certain = _is_readable(start, model) and _is_certain(model)
    for finding in check_name(start, "--quantization", start.facts.registries.quantization_methods, fold=str.lower):
        yield finding if is_certain else finding._replace(severity="warning")


def _deprecated_findings(start: CheckedStart, model: ModelChecks, given: str, method: str) -> Iterator[Finding]:
    name = given or method
    if name not in start.facts.quantization.deprecated or start.has(_ALLOW_DEPRECATED):
        return
    if start.facts.has_rule("quantization is not deprecated"):
        # Another one of the checkpoint may replace that of the flag.
        report = error if method in ("", name) and _is_certain(model) else warning
        yield report(_CHECK, f"this vLLM reads {name} only with {_ALLOW_DEPRECATED}: add it")


def _mismatch_findings(start: CheckedStart, model: ModelChecks, given: str, method: str) -> Iterator[Finding]:
    wanted, has = _family(given), _family(method)
    if wanted == has or has in _REPLACED or given in _FOR_ANY:
        return
    if not start.facts.has_rule("quantization fits checkpoint"):
        return
    is_certain = wanted in _EXACT and has in _EXACT and _is_certain(model)
    severity: Severity = "error" if is_certain else "warning"
    text = f"--quantization {given} does not fit the checkpoint, which is quantized with {method} (config.json)"
    yield Finding(_CHECK, severity, f"{text}: leave it out")


def _settings_findings(start: CheckedStart, model: ModelChecks, given: str) -> Iterator[Finding]:
    """A flag for a checkpoint that is not quantized."""
    names = _SETTINGS.get(_family(given))
    if names is None or model.folder is None or not start.facts.has_rule("quantization has settings"):
        return
    if any(path.name.endswith(names) for path in model.folder.glob("*.json")):
        return
    report = error if model.is_whole and _is_certain(model) else warning
    yield report(
        _CHECK,
        f"--quantization {given} needs a checkpoint that is quantized so, and {model.folder} is not: config.json has "
        f"no quantization_config, and there is no {names[0]}; leave the flag out, or take a quantized checkpoint",
    )
