"""Starts of vLLM that fail, with the expected messages of the preflight.

`stage` is the stage in which real vLLM fails. `parse`: in its argument parser or the validation after it.
`config`: while it makes its configuration. `later`: in `config`, while it reads further files, or in the
engine or server.
"""

from typing import Final, Literal, NamedTuple

Stage = Literal["parse", "config", "later"]


class FaultyStart(NamedTuple):
    """A command line with variables, and the expected result of the preflight."""

    words: tuple[str, ...]
    message: str
    """A part of the message. The message must name the value and the fix."""
    stage: Stage
    exit_code: int
    variables: dict[str, str]


def _usage(words: str, *more: str, message: str, stage: Stage = "parse", **variables: str) -> FaultyStart:
    return FaultyStart((*words.split(), *more), message, stage, 2, variables)


def _fault(words: str, *more: str, message: str, stage: Stage = "config", **variables: str) -> FaultyStart:
    return FaultyStart((*words.split(), *more), message, stage, 3, variables)


FAULTY_STARTS: Final[dict[str, FaultyStart]] = {
    "unknown flag": _usage("{model} --enforce-eagre", message="did you mean '--enforce-eager'"),
    "unknown flag with value": _usage("{model} --gpu-memory-utilisation 0.5", message="'--gpu-memory-utilization'"),
    "two unknown flags": _usage("{model} --enforce-eagre --max-model-length 5", message="2 faults"),
    "ambiguous flag": _usage("{model} --max 5", message="--max-model-len"),
    "value missing": _usage("{model} --tensor-parallel-size", message="--tensor-parallel-size needs one argument"),
    "no number": _usage("{model} --max-num-seqs many", message="--max-num-seqs 'many' is not a whole number"),
    "no size": _usage("{model} --max-model-len 8kb", message="--max-model-len '8kb' is neither auto"),
    "port is no number": _usage("{model} --port 80a", message="--port '80a'"),
    "unknown choice": _usage("{model} --dtype flaot16", message="did you mean 'float16'"),
    "unknown level": _usage("{model} --uvicorn-log-level loud", message="'loud' is not one of"),
    "broken JSON": _usage("{model} --hf-overrides", '{"a": 1,}', message="--hf-overrides"),
    "broken JSON of a list": _usage("{model} --allowed-origins *", message="--allowed-origins '*' is not JSON"),
    "unknown tool parser": _fault(
        "{model} --enable-auto-tool-choice --tool-call-parser hermse", message="did you mean 'hermes'"
    ),
    "unknown reasoning parser": _fault("{model} --reasoning-parser qwen33", message="no --reasoning-parser 'qwen33'"),
    "unknown quantization": _fault("{model} --quantization fp9", message="no --quantization 'fp9'"),
    "unknown load format": _fault("{model} --load-format safetensor", message="'safetensors'", stage="later"),
    "unknown attention backend": _fault("{model} --attention-backend flash_atn", message="no --attention-backend"),
    "no such config file": _usage("{model} --config missing.yaml", message="--config missing.yaml cannot be read"),
    "config file of another kind": _usage("{model} --config {settings.json}", message=".yaml or .yml"),
    "config file is a list": _usage("{model} --config {list.yaml}", message="must be a mapping"),
    "config file is broken": _usage("{model} --config {broken.yaml}", message="is not YAML"),
    "served name without model": _usage("--served-model-name a", message="MODEL"),
    "template missing": _fault("{model} --chat-template missing.jinja", message="missing.jinja", stage="parse"),
    "certificate missing": _fault(
        "{model} --ssl-certfile missing.pem --ssl-keyfile missing.key", message="missing.pem", stage="later"
    ),
    "middleware missing": _fault("{model} --middleware no_such.Class", message="no module no_such", stage="later"),
    "adapter missing": _fault("{model} --enable-lora --lora-modules a=/missing", message="/missing", stage="later"),
    "adapter too large": _fault(
        "{model} --enable-lora --lora-modules a={adapter_64}", message="--max-lora-rank 64", stage="later"
    ),
    "adapters not enabled": _fault("{model} --lora-modules a={adapter}", message="--enable-lora", stage="later"),
    "no such folder": _fault("{folder}/mising", message="is neither a folder nor a name"),
    "offline and not cached": _fault("someone/unknown", message="HF_HUB_OFFLINE", HF_HUB_OFFLINE="1"),
    "no config.json": _fault("{no_config}", message="has no config.json"),
    "broken config.json": _fault("{broken_config}", message="is not JSON"),
    "empty folder": _fault("{empty}", message="has no config.json"),
    "broken tokenizer": _fault("{broken_tokenizer}", message="tokenizer.json is not JSON", stage="later"),
    "no weights": _fault("{dummy}", message="has no weights", stage="later"),
    "pointer instead of weights": _fault("{lfs}", message="git lfs pull", stage="later"),
    "truncated weights": _fault("{truncated}", message="is truncated", stage="later"),
    "missing shard": _fault("{missing_shard}", message="lacks 1 of 2 shards", stage="later"),
    "too long": _fault("{model} --max-model-len 99999", message="give at most 8192"),
    "heads do not divide": _fault("{model} --tensor-parallel-size 2", message="9 attention heads"),
    "remote code not trusted": _fault("{remote_code}", message="--trust-remote-code"),
    "unknown architecture": _fault("{unknown_architecture}", message="'LlamoForCausalLM'"),
    "unknown model type": _fault("{unknown_type}", message="'llamo'"),
    "utilization above 1": _fault("{model} --gpu-memory-utilization 1.5", message="must be 1 or less, got 1.5"),
    "variable is no number": _fault(
        "{model}", message="VLLM_RINGBUFFER_WARNING_INTERVAL", stage="later", VLLM_RINGBUFFER_WARNING_INTERVAL="long"
    ),
    "cache larger than the machine": _fault("{model} --kv-cache-memory-bytes 100T", message="100", stage="later"),
}  # fmt: skip
