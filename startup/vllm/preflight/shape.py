"""Checks the configured sizes against the model's configuration, by the rules that vLLM applies itself."""

from collections.abc import Iterator
from typing import Any, Final

from envs import foreign
from startup.preflight.memory_fit import LENGTH_KEYS
from startup.preflight.report import Finding, error, warning
from startup.vllm.preflight.arguments import CheckedStart
from startup.vllm.preflight.model import ModelChecks, read_sources

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
