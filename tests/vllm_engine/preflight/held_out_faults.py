"""Starts of vLLM with one mistake each. They were collected before the checks for them were written.

Each row has the words of a start. Files and folders that it needs are in `{}` (see `start_folders`).
"""

import json
from typing import Final, NamedTuple


class HeldOutFault(NamedTuple):
    """A command line with variables, and the expected text about the fault."""

    words: tuple[str, ...]
    told: str
    """The text in the line about the fault: the faulty value, or the flag, variable or file that has it."""
    variables: dict[str, str]


def _words(words: str, *more: str, told: str, **variables: str) -> HeldOutFault:
    """A fault of a start. `words` is split at blanks. `more` are words that may have blanks."""
    return HeldOutFault((*words.split(), *more), told, variables)


def _flag(words: str, *more: str, **variables: str) -> HeldOutFault:
    """A fault whose text names the first flag."""
    return _words(f"{{model}} {words}", *more, told=words.split(maxsplit=1)[0], **variables)


def _folder(name: str, told: str, words: str = "", **variables: str) -> HeldOutFault:
    """A fault of the model's folder."""
    return _words(f"{{{name}}} {words}", told=told, **variables)


def _variable(name: str, value: str) -> HeldOutFault:
    return _words("{model}", told=name, **{name: value})


_UNKNOWN_CONNECTOR: Final = json.dumps({"kv_connector": "NoSuchConnector", "kv_role": "kv_both"})
_NO_METHOD: Final = json.dumps({"method": "nogram", "num_speculative_tokens": 3})
_NO_NUMBER: Final = json.dumps({"method": "ngram", "prompt_lookup_max": 3})

HELD_OUT_FAULTS: Final[dict[str, HeldOutFault]] = {
    # names that vLLM registers
    "tool parser": _flag("--tool-call-parser hermees --enable-auto-tool-choice"),
    "reasoning parser": _flag("--reasoning-parser deepseek_r9"),
    "quantization": _flag("--quantization int3"),
    "quantization without settings": _flag("--quantization awq"),
    "quantization of another kind": _folder("gptq", "--quantization", "--quantization awq"),
    "attention backend": _flag("--attention-backend FLASH_ATTENTIONS"),
    "config format": _flag("--config-format huggingface"),
    "executor": _flag("--distributed-executor-backend rey"),
    "tool choice without parser": _flag("--enable-auto-tool-choice"),
    # numbers
    "length above the model's": _flag("--max-model-len 20000"),
    "length with suffix": _flag("--max-model-len 128k"),
    "length below one": _flag("--max-model-len -7"),
    "heads": _flag("--tensor-parallel-size 2"),
    "no ranks": _flag("--tensor-parallel-size 0"),
    "utilization in percent": _flag("--gpu-memory-utilization 90"),
    "no utilization": _flag("--gpu-memory-utilization 0"),
    "no sequences": _flag("--max-num-seqs 0"),
    "batch below sequences": _flag("--max-num-batched-tokens 64 --max-num-seqs 128"),
    "no block": _flag("--block-size 0"),
    "stages below one": _flag("--pipeline-parallel-size 0"),
    "negative logprobs": _flag("--max-logprobs -5"),
    "rank of a node": _flag("--node-rank 5 --nnodes 2 --master-addr 127.0.0.1"),
    "adapters on the processor": _flag("--max-cpu-loras 1 --max-loras 4 --enable-lora"),
    "seed": _flag("--seed first"),
    # choices
    "cache type": _flag("--kv-cache-dtype fp9"),
    "rank of adapters": _flag("--max-lora-rank 7 --enable-lora"),
    "runner": _flag("--runner embedding"),
    "former flag": _flag("--use-v2-block-manager"),
    "misspelt flag": _flag("--tensor-paralel-size 1"),
    "outputs without requests": _flag("--enable-log-outputs"),
    "several front ends of no server": _flag("--headless --api-server-count 2"),
    # JSON values
    "field of the compilation": _flag("--compilation-config", '{"modus": 3}'),
    "level of the compilation": _flag("-cc.mode 9"),
    "JSON of the speculation": _flag("--speculative-config", '{"method": "ngram"'),
    "method of the speculation": _flag("--speculative-config", _NO_METHOD),
    "number of the speculation": _flag("--speculative-config", _NO_NUMBER),
    "former form of limits": _flag("--limit-mm-per-prompt image=2"),
    "backend of structured outputs": _flag("--structured-outputs-config", '{"backend": "outlin"}'),
    "connector": _flag("--kv-transfer-config", _UNKNOWN_CONNECTOR),
    "sampling defaults": _flag("--override-generation-config temperature=1"),
    # variables
    "port of a Service": _variable("VLLM_PORT", "tcp://10.96.0.1:8000"),
    "level of the log": _variable("VLLM_LOGGING_LEVEL", "verbose"),
    "space of the cache": _variable("VLLM_CPU_KVCACHE_SPACE", "4GB"),
    "timeout of the engine": _variable("VLLM_ENGINE_READY_TIMEOUT_S", "10m"),
    # files that flags name
    "template": _flag("--chat-template ./chatml.jinja"),
    "file of settings": _words("{model} --config {unknown_key.yaml}", told="--tensor-paralel"),
    "middleware": _flag("--middleware my_auth.Middleware"),
    "tokenizer": _flag("--tokenizer /no/such/tokenizer"),
    "sampling defaults of a folder": _flag("--generation-config /no/such/folder"),
    "adapter without configuration": _flag("--lora-modules a={empty} --enable-lora"),
    "adapter that is no JSON": _flag("--lora-modules a={broken_adapter} --enable-lora"),
    # ports and TLS
    "port too large": _words("{model} --port 99999", told="99999"),
    "address of another machine": _words("{model} --host 203.0.113.7", told="203.0.113.7"),
    "folder of the socket": _words("{model} --uds /no/such/folder/vllm.sock", told="/no/such/folder"),
    "key of another certificate": _flag("--ssl-certfile {certificates}/localhost.crt --ssl-keyfile {other_key}"),
    "certificate that is none": _flag("--ssl-certfile {list.yaml} --ssl-keyfile {list.yaml}"),
    # the model's folder
    "name of the folder": _words("./smolm2", told="./smolm2"),
    "no configuration": _folder("no_config", "config.json"),
    "unknown type": _folder("unknown_type", "llamo"),
    "unknown architecture": _folder("unknown_architecture", "LlamoForCausalLM"),
    "own code": _folder("remote_code", "--trust-remote-code"),
    "no tokenizer": _folder("no_tokenizer", "tokenizer"),
    "truncated tokenizer": _folder("broken_tokenizer", "tokenizer.json"),
    "type of the weights": _folder("unknown_dtype", "float17"),
    "method of the checkpoint": _folder("unknown_method", "nofp2"),
    "pointer": _folder("lfs", "model.safetensors"),
    "index without shards": _folder("missing_shard", "model-00002-of-00002.safetensors"),
    "empty weights": _folder("empty_weights", "model.safetensors"),
    "heads of no width": _folder("zero_heads", "num_attention_heads"),
}
