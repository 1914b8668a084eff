"""The replacements of former flags, commands and variables of vLLM, and of this program's last release.

`envs.suggestion` adds the replacement to errors and notices. A name is looked up only if the installed
version does not know it, because an older vLLM still has some of the flags. A key `FLAG VALUE` stands for a
flag that still exists, but whose value had another form. Names of former hooks are for VCLI_LEAVE_OUT.
"""

from typing import Final

_USELESS: Final = (
    "--calculate-kv-scales",
    "--disable-async-output-proc",
    "--disable-frontend-multiprocessing",
    "--disable-logprobs-during-spec-decoding",
    "--enable-lora-bias",
    "--enable-prompt-adapter",
    "--engine-use-ray",
    "--long-lora-scaling-factors",
    "--lora-extra-vocab-size",
    "--max-long-partial-prefills",
    "--max-num-partial-prefills",
    "--max-prompt-adapter-token",
    "--max-prompt-adapters",
    "--multi-step-stream-outputs",
    "--num-lookahead-slots",
    "--num-scheduler-steps",
    "--preemption-mode",
    "--quantization-param-path",
    "--scheduler-delay-factor",
    "--speculative-disable-by-batch-size",
    "--tokenizer-pool-extra-config",
    "--tokenizer-pool-type",
    "--use-v2-block-manager",
)
_RENAMED: Final = {
    "VLLM_ATTENTION_BACKEND": "--attention-backend",
    "--chat-template-text-format": "--chat-template-content-format",
    "--cuda-graph-sizes": "--cudagraph-capture-sizes",
    "--override-neuron-config": "--additional-config",
    "--disable-mm-preprocessor-cache": "--mm-processor-cache-gb 0",
    "--override-pooler-config": "--pooler-config",
    "--enable-multimodal-encoder-data-parallel": "--mm-encoder-tp-mode data",
    "--eplb-log-balancedness": "--eplb-config.log_balancedness true",
    "--eplb-step-interval": "--eplb-config.step_interval",
    "--eplb-window-size": "--eplb-config.window_size",
    "--num-redundant-experts": "--eplb-config.num_redundant_experts",
    "--full-cuda-graph": "--compilation-config.cudagraph_mode FULL",
    "--guided-decoding-backend": "--structured-outputs-config.backend",
    "--guided-decoding-disable-additional-properties": "--structured-outputs-config.disable_additional_properties",
    "--guided-decoding-disable-any-whitespace": "--structured-outputs-config.disable_any_whitespace",
    "--ngram-prompt-lookup-max": "--speculative-config.prompt_lookup_max",
    "--ngram-prompt-lookup-min": "--speculative-config.prompt_lookup_min",
    "--num-speculative-tokens": "--speculative-config.num_speculative_tokens",
    "--speculative-draft-tensor-parallel-size": "--speculative-config.draft_tensor_parallel_size",
    "--speculative-max-model-len": "--speculative-config.max_model_len",
    "--speculative-model": "--speculative-config.model",
    "--qlora-adapter-name-or-path": "--lora-modules",
    "--rope-scaling": """--hf-overrides '{"rope_parameters": {"rope_type": "yarn", ...}}'""",
    "--rope-theta": """--hf-overrides '{"rope_parameters": {"rope_theta": ...}}'""",
    "--tokenizer-pool-size": "--renderer-num-workers",
    "--worker-use-ray": "--distributed-executor-backend ray",
}
_OF_VLLM: Final = (
    "bench forward",
    "bench latency",
    "bench mm-processor",
    "bench sweep",
    "bench throughput",
    "download-kernels",
    "launch",
    "snapshot",
)
"""Commands that did the same as the installed vLLM's."""
_LOADS: Final = {
    "--api-key": "set OPENAI_API_KEY",
    "--cmd": "start the server, then give --base-url",
    "--concurrency": "give --max-concurrency, one number for each run",
    "--endpoint chat": "give --backend openai-chat --endpoint /v1/chat/completions",
    "--endpoint completions": "leave it out",
    "--idle": "run one server at a time",
    "--json": "give --save-result",
    "--max-tokens": "give --random-output-len",
    "--prompt-tokens": "give --random-input-len",
    "--ready-timeout": "give --ready-check-timeout-sec",
    "--requests": "give --num-prompts",
    "--shared-prefix-tokens": "give --random-prefix-len",
    "--url": "give --base-url",
    **dict.fromkeys(("--rounds", "--vs", "--vs-model", "--vs-url"), "run it again for each server and round"),
}
"""Former flags of `bench serve`, which is vLLM's now."""

REPLACEMENTS: Final[dict[str, str]] = {
    **dict.fromkeys(_USELESS, "leave it out"),
    **{old: f"give {new}" for old, new in _RENAMED.items()},
    **{command: f"`vllm {command}`" for command in _OF_VLLM},
    "--compilation-config VALUE": "write a level as -O3 or leave it out",
    "--device": "leave it out, vLLM runs on the device that it was built for",
    "--disable-log-requests": "leave it out, requests are logged only with --enable-log-requests",
    "--enable-reasoning": "leave it out, --reasoning-parser is enough",
    "--evict": "evict the files before, with `vmtouch -e`",
    "--limit-mm-per-prompt VALUE": """write image=4 as '{"image": 4}'""",
    "--max-seq-len-to-capture": "leave it out, or give --max-cudagraph-capture-size, which counts the tokens of a step",
    "--swap-space": "leave it out, or give --kv-offloading-size, GiB of memory for blocks of the KV cache",
    "--task": "leave out `generate`, write others as --runner pooling, and for a model that generates with --convert",
    "VLLM_USE_V1": "unset it, vLLM has no other engine",
    **{f"bench serve {old}": text for old, text in _LOADS.items()},
    "check-hooks": "`vllm-cli doctor --hooks`",
    "collect-env": "`vllm-cli doctor`, or `vllm collect-env`",
    "complete": "`vllm-cli chat --quick`, or `vllm complete`",
    "env": "`vllm-cli doctor --env`",
    "late sources of Triton kernels": "leave it out, Triton reads a kernel's source when it is imported",
    "preload": "`vllm preload`, and `vllm-cli doctor --hooks` or `caches` for what starts preload",
    "timeline": "the log and the server's status page show the phases, and `jq .phases FILE` those of a report",
}
