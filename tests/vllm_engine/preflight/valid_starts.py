"""Unusual but valid starts of vLLM. The preflight must not refuse any of them.

`generated_starts` has spellings of flags.
"""

import json
from typing import Final, NamedTuple


class ValidStart(NamedTuple):
    """A command line with variables."""

    words: tuple[str, ...]
    variables: dict[str, str] = {}


def _start(words: str, *more: str, **variables: str) -> ValidStart:
    """A start. `words` is split at blanks. `more` are words that may have blanks."""
    return ValidStart((*words.split(), *more), variables)


_NGRAM: Final = json.dumps({"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3})

VALID_STARTS: Final[dict[str, ValidStart]] = {
    "plain": _start("{model}"),
    "model as flag": _start("--model {model}"),
    "model as flag with equals": _start("--max-model-len 512 --model={model}"),
    "model after flags": _start("--port 8001 {model}"),
    "model after two dashes": _start("--max-model-len 512 -- {model}"),
    "model in config file": _start("--config {model.yaml}"),
    "link to the folder": _start("{link}"),
    "trailing slash": _start("{model}/"),
    "folder with a blank": _start("", "{with space é}"),
    "abbreviated flags": _start("{model} --max-model 512 --enforce --gpu-mem 0.5"),
    "compilation as JSON": _start("{model} --compilation-config", '{"mode": 0}'),
    "nested keys": _start("{model} --compilation-config.pass_config.fuse_norm_quant false"),
    "overrides of the architecture": _start("{model} --hf-overrides", '{"architectures": ["LlamaForCausalLM"]}'),
    "overrides by key": _start("{model} --hf-overrides.max_position_embeddings 4096 --max-model-len 4096"),
    "longer by override": _start("{model} --hf-overrides.max_position_embeddings 16384 --max-model-len 16384"),
    "longer by scaling": _start("{scaled} --max-model-len 20000"),
    "longer by permission": _start("{model} --max-model-len 9000", VLLM_ALLOW_LONG_MAX_MODEL_LEN="1"),
    "longer by permission in a word": _start("{model} --max-model-len 9000", VLLM_ALLOW_LONG_MAX_MODEL_LEN=" True"),
    "architecture by override": _start(
        "{unknown_architecture} --hf-overrides", '{"architectures": ["LlamaForCausalLM"]}'
    ),
    "no architectures": _start("{no_architectures}"),
    "another end of the architecture": _start("{classifier}"),
    "dummy weights": _start("{dummy} --load-format dummy"),
    "dummy weights over pointers": _start("{lfs} --load-format dummy"),
    "dummy weights over broken ones": _start("{truncated} --load-format dummy"),
    "safetensors by name": _start("{model} --load-format safetensors"),
    "junk beside the weights": _start("{junk}"),
    "odd names of weights": _start("{odd_names}"),
    "file beside those of the index": _start("{index_of_one}"),
    "tokenizer not needed": _start("{no_tokenizer} --skip-tokenizer-init"),
    "tokenizer in another folder": _start("{no_tokenizer} --tokenizer {model}"),
    "configuration in another folder": _start("{no_config} --hf-config-path {model}"),
    "remote code": _start("{remote_code} --trust-remote-code"),
    "other values of the hub's variables": _start("{model}", HF_HUB_OFFLINE="enabled", TRANSFORMERS_OFFLINE="y"),
    "cached, offline": _start("someone/tiny", HF_HOME="{cached}", HF_HUB_OFFLINE="1"),
    "cached, with revision": _start("someone/tiny --revision main", HF_HOME="{cached}", HF_HUB_OFFLINE="1"),
    "revision of a folder": _start("{model} --revision main"),
    "config file": _start("{model} --config {settings.yaml}"),
    "config file and flags": _start("{model} --config {settings.yaml} --max-model-len 256"),
    "config file with objects": _start("{model} --config {nested.yml}"),
    "template in a file": _start("{model} --chat-template {template.jinja}"),
    "template in the word": _start("{model} --chat-template", "{{ messages[0].content }}"),
    "tool parser": _start("{model} --enable-auto-tool-choice --tool-call-parser hermes"),
    "tool parser without tools": _start("{model} --tool-call-parser hermes"),
    "tool parser of a plugin": _start(
        "{model} --enable-auto-tool-choice --tool-call-parser mine --tool-parser-plugin {tools.py}"
    ),
    "reasoning parser": _start("{model} --reasoning-parser qwen3"),
    "reasoning parser of a plugin": _start("{model} --reasoning-parser mine --reasoning-parser-plugin {reasoning.py}"),
    "no quantization": _start("{model} --quantization None"),
    "quantization of the checkpoint": _start("{compressed} --quantization compressed-tensors"),
    "quantization by the checkpoint": _start("{compressed}"),
    "quantization in capitals": _start("{compressed} --quantization COMPRESSED-TENSORS"),
    "quantized while it is loaded": _start("{model} --quantization fp8_per_tensor"),
    "several nodes": _start("{model} -pp 2 --nnodes 2 --node-rank 0 --master-addr localhost"),
    "speculative": _start("{model} --speculative-config", _NGRAM),
    "speculative by key": _start("{model} -sc.method ngram -sc.num_speculative_tokens 3 -sc.prompt_lookup_max 3"),
    "pooling": _start("{model} --runner pooling --convert embed"),
    "images limited": _start("{model} --limit-mm-per-prompt", '{"image": 1}'),
    "generation settings": _start(
        "{model} --generation-config vllm --override-generation-config", '{"temperature": 0.5}'
    ),
    "structured outputs by key": _start("{model} --structured-outputs-config.backend guidance"),
    "log level of uvicorn": _start("{model} --uvicorn-log-level trace --disable-log-stats"),
    "logged outputs": _start("{model} --enable-log-requests --enable-log-outputs"),
    "middleware": _start("{model} --middleware own_middleware.Middleware", PYTHONPATH="{package}"),
    "logits processor": _start("{model} --logits-processors own_processor:Own", PYTHONPATH="{package}"),
    "adapters": _start("{model} --enable-lora --lora-modules a={adapter}"),
    "adapter as JSON": _start("{model} --enable-lora --lora-modules", '{"name": "a", "path": "{adapter}"}'),
    "large adapter": _start("{model} --enable-lora --max-lora-rank 64 --lora-modules a={adapter_64}"),
    "adapters on the processor": _start("{model} --enable-lora --max-loras 2 --max-cpu-loras 4"),
    "fewer adapters on the processor, without adapters": _start("{model} --max-loras 4 --max-cpu-loras 2"),
    "small batches": _start("{model} --max-num-seqs 1 --max-num-batched-tokens 8192"),
    "attention chosen by vLLM": _start("{model} --attention-backend auto"),
    "configuration format chosen by vLLM": _start("{model} --config-format auto"),
    "additional settings": _start("{model} --additional-config", '{"a": 1}'),
    "blocks": _start("{model} --block-size 32"),
    "sizes of graphs": _start("{model} --cudagraph-capture-sizes 1 2 4"),
    "executor": _start("{model} --distributed-executor-backend mp"),
    "local media": _start("{model} --allowed-local-media-path /tmp"),
    "unknown variable": _start("{model}", VLLM_NO_SUCH_VARIABLE="1"),
    "port of the engine": _start("{model}", VLLM_PORT="23456"),
    "Kubernetes service beside": _start(
        "{model}", VLLM_ROUTER_PORT="tcp://10.0.0.1:80", VLLM_ROUTER_SERVICE_HOST="10.0.0.1"
    ),
    "level in small letters": _start("{model}", VLLM_LOGGING_LEVEL="debug"),
    "plugins off": _start("{model}", VLLM_PLUGINS=""),
    "certificate": _start(
        "{model} --ssl-certfile {certificates}/localhost.crt --ssl-keyfile {certificates}/localhost.key"
    ),
}  # fmt: skip
