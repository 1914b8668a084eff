"""The replacements of former flags, commands and variables of vLLM and of this program.

`envs.suggestion` adds the replacement to errors and notices. A name is looked up only if the installed
version does not know it, because an older vLLM still has some of the flags. A key `FLAG VALUE` stands for a
flag that still exists, but whose value had another form.
"""

from typing import Final

LIMITS: Final = {
    "VCLI_MAX_RUNNING": "--max-running", "VCLI_MAX_WAIT": "--max-wait", "VCLI_MAX_WAITING": "--max-waiting",
    "VCLI_MEMORY_BUDGET": "--memory-budget", "VCLI_MODELS": "--models",
}  # fmt: skip
"""Former variables. If one is set, the start fails. The server would lack this limit, or these models."""

RETIRED: Final = {
    "--detach": "write `vllm-cli serve ... &`, then `vllm-cli wait --pid $!`",
    "--engine-restarts": "give --restart on-failure",
    **dict.fromkeys(("--http-min-body-rate", "--http-send-buffer-size"), "leave it out, the value is fixed"),
    "--http-max-prompts": "set VLLM_MAX_COMPLETION_PROMPTS",
    "--http-max-stop-strings": "set VLLM_MAX_STOP_STRINGS",
    **dict.fromkeys(
        ("--http-max-stored-responses", "--http-max-stored-size", "--responses-store-file"),
        "leave it out, only --engine vllm stores responses",
    ),
    "--idle-warm": "give --standby off, or leave it out",
    "--lora-adapter-root": "leave it out, only --engine vllm has LoRA adapters, of any folder",
}
"""Former flags of `serve` that vLLM never had. Both engines refuse them, also in a `--config` file."""

_USELESS: Final = (
    "--calculate-kv-scales", "--disable-async-output-proc", "--disable-frontend-multiprocessing",
    "--disable-logprobs-during-spec-decoding", "--enable-lora-bias", "--enable-prompt-adapter", "--engine-use-ray",
    "--long-lora-scaling-factors", "--lora-extra-vocab-size", "--max-long-partial-prefills",
    "--max-num-partial-prefills", "--max-prompt-adapter-token", "--max-prompt-adapters", "--multi-step-stream-outputs",
    "--num-lookahead-slots", "--num-scheduler-steps", "--preemption-mode", "--quantization-param-path",
    "--scheduler-delay-factor", "--speculative-disable-by-batch-size", "--tokenizer-pool-extra-config",
    "--tokenizer-pool-type", "--use-v2-block-manager", "--prefetch-block-size", "--prefetch-threads",
)  # fmt: skip
_RENAMED: Final = {
    **LIMITS, "VCLI_IDLE_WARM": "--standby off", "VLLM_ATTENTION_BACKEND": "--attention-backend",
    "--chat-template-text-format": "--chat-template-content-format",
    "--cuda-graph-sizes": "--cudagraph-capture-sizes", "--override-neuron-config": "--additional-config",
    "--disable-mm-preprocessor-cache": "--mm-processor-cache-gb 0", "--override-pooler-config": "--pooler-config",
    "--enable-multimodal-encoder-data-parallel": "--mm-encoder-tp-mode data",
    "--eplb-log-balancedness": "--eplb-config.log_balancedness true",
    "--eplb-step-interval": "--eplb-config.step_interval", "--eplb-window-size": "--eplb-config.window_size",
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
    "--speculative-model": "--speculative-config.model", "--qlora-adapter-name-or-path": "--lora-modules",
    "--rope-scaling": """--hf-overrides '{"rope_parameters": {"rope_type": "yarn", ...}}'""",
    "--rope-theta": """--hf-overrides '{"rope_parameters": {"rope_theta": ...}}'""",
    "--tokenizer-pool-size": "--renderer-num-workers", "--worker-use-ray": "--distributed-executor-backend ray",
}  # fmt: skip
_OF_VLLM: Final = (
    "bench forward", "bench latency", "bench mm-processor", "bench sweep", "bench throughput", "download-kernels",
    "launch", "snapshot",
)  # fmt: skip
"""Commands that did the same as the installed vLLM's."""
_LOADS: Final = {
    "--api-key": "set OPENAI_API_KEY", "--cmd": "start the server, then give --base-url",
    "--concurrency": "give --max-concurrency, one number for each run",
    "--endpoint chat": "give --backend openai-chat --endpoint /v1/chat/completions",
    "--endpoint completions": "leave it out", "--idle": "run one server at a time", "--json": "give --save-result",
    "--max-tokens": "give --random-output-len", "--prompt-tokens": "give --random-input-len",
    "--ready-timeout": "give --ready-check-timeout-sec", "--requests": "give --num-prompts",
    "--shared-prefix-tokens": "give --random-prefix-len", "--url": "give --base-url",
    **dict.fromkeys(("--rounds", "--vs", "--vs-model", "--vs-url"), "run it again for each server and round"),
}  # fmt: skip
"""Former flags of `bench serve`, which is vLLM's now."""
_PARTS: Final = {
    "VCLI_HUB_OFFLINE": "offline hub", "VCLI_IMPORT_FILE": "import file", "VCLI_LEAN_IMPORTS": "lean imports",
    "VCLI_PROBE_REALTIME": "real-time probes",
}  # fmt: skip

REPLACEMENTS: Final[dict[str, str]] = {
    **RETIRED,
    **dict.fromkeys(_USELESS, "leave it out"),
    **{old: f"give {new}" for old, new in _RENAMED.items()},
    **{command: f"`vllm {command}`" for command in _OF_VLLM},
    **{variable: f'set VCLI_LEAVE_OUT="{part}" instead of 0' for variable, part in _PARTS.items()},
    **dict.fromkeys(
        ("--http-max-json-depth", "--http-max-messages", "--http-max-tools"),
        "leave it out, --http-max-json-values limits a body",
    ),
    **dict.fromkeys(("--http-request-timeout", "--request-timeout"), "leave it out, an answer may take any time"),
    "--baseline": "compare servers with --vs",
    "--check": "bake again, what no longer applies is not used",
    "--compilation-config VALUE": "write a level as -O3 or leave it out",
    "--device": "leave it out, vLLM runs on the device that it was built for",
    "--download-kernels": "run `vllm download-kernels` before",
    "--disable-log-requests": "leave it out, requests are logged only with --enable-log-requests",
    "--enable-reasoning": "leave it out, --reasoning-parser is enough",
    "--fail-over": "judge the `ratios` of --json",
    "--html": "the server's status page draws its start",
    "--limit-mm-per-prompt VALUE": """write image=4 as '{"image": 4}'""",
    "--list": "`hf cache ls` lists the models on disk",
    "--max-seq-len-to-capture": "leave it out, or give --max-cudagraph-capture-size, which counts the tokens of a step",
    "--reject-unknown-fields": "leave it out, unknown fields are ignored, as by vLLM",
    "--retry-failed": "delete the failed lines of the output and run the command again",
    "--startup-trace": "give --startup-report",
    "--swap-space": "leave it out, or give --kv-offloading-size, GiB of memory for blocks of the KV cache",
    "--task": "leave out `generate`, write others as --runner pooling, and for a model that generates with --convert",
    "VCLI_FRONT": "unset it",
    "VLLM_USE_V1": "unset it, vLLM has no other engine",
    "bench liveness": "`vllm-cli bench startup` measures /health during a start",
    **{f"bench serve {old}": text for old, text in _LOADS.items()},
    "caches list": "`vllm-cli caches`",
    "check-hooks": "`vllm-cli doctor --hooks`",
    "collect-env": "`vllm-cli doctor`, or `vllm collect-env`",
    "complete": "`vllm-cli chat --quick`, or `vllm complete`",
    "env": "`vllm-cli doctor --env`",
    "caches --compile-cache": "list the location itself, such as `ls LOCATION` or `aws s3 ls LOCATION`",
    "preload": "`vllm preload`, and `vllm-cli doctor --hooks` or `caches` for what starts preload",
    "run-batch --fail-on-error": "look for `error` in the lines of the output",
    "run-batch --json": "count the lines of the output",
    "run-batch --max-concurrency": "give --max-inflight",
    "run-batch --overwrite": "leave it out, vLLM replaces the output",
    "run-batch --quiet": "leave it out",
    "run-batch --retry-timeout": "leave it out",
    **{f"run-batch --url {scheme}": "leave it out, vLLM starts a server" for scheme in ("http", "https", "unix")},
    "probes": "docs/fleet.md has the probes",
    "timeline": "the log and the server's status page show the phases, and `jq .phases FILE` those of a report",
}
