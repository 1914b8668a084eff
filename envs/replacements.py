"""What takes the place of flags, commands and variables that vLLM or this program has had before.

Errors and notices get it from `envs.suggestion`. A name is looked up only where it is unknown: an older vLLM
still has some of the flags. `FLAG VALUE` is a former form of the values of a flag that still exists.
"""

from typing import Final

LIMITS: Final = {
    "VCLI_MAX_RUNNING": "--max-running",
    "VCLI_MAX_WAIT": "--max-wait",
    "VCLI_MAX_WAITING": "--max-waiting",
    "VCLI_MEMORY_BUDGET": "--memory-budget",
}
"""Former variables for limits: a server must not start without a limit that was given."""

REPLACEMENTS: Final[dict[str, str]] = {
    **{name: f"give {flag}" for name, flag in LIMITS.items()},
    **dict.fromkeys(
        (
            "--calculate-kv-scales", "--disable-async-output-proc", "--disable-frontend-multiprocessing",
            "--disable-logprobs-during-spec-decoding", "--enable-lora-bias", "--enable-prompt-adapter",
            "--engine-use-ray", "--long-lora-scaling-factors", "--lora-extra-vocab-size",
            "--max-long-partial-prefills", "--max-num-partial-prefills", "--max-prompt-adapter-token",
            "--max-prompt-adapters", "--multi-step-stream-outputs", "--num-lookahead-slots", "--num-scheduler-steps",
            "--preemption-mode", "--quantization-param-path", "--scheduler-delay-factor",
            "--speculative-disable-by-batch-size", "--tokenizer-pool-extra-config", "--tokenizer-pool-type",
            "--use-v2-block-manager",
        ),
        "leave it out",
    ),
    **{
        old: f"give {new}"
        for old, new in {
            "--chat-template-text-format": "--chat-template-content-format",
            "--cuda-graph-sizes": "--cudagraph-capture-sizes",
            "--disable-mm-preprocessor-cache": "--mm-processor-cache-gb 0",
            "--enable-multimodal-encoder-data-parallel": "--mm-encoder-tp-mode data",
            "--eplb-log-balancedness": "--eplb-config.log_balancedness true",
            "--eplb-step-interval": "--eplb-config.step_interval",
            "--eplb-window-size": "--eplb-config.window_size",
            "--full-cuda-graph": "--compilation-config.cudagraph_mode FULL",
            "--guided-decoding-backend": "--structured-outputs-config.backend",
            "--guided-decoding-disable-additional-properties":
                "--structured-outputs-config.disable_additional_properties",
            "--guided-decoding-disable-any-whitespace": "--structured-outputs-config.disable_any_whitespace",
            "--ngram-prompt-lookup-max": "--speculative-config.prompt_lookup_max",
            "--ngram-prompt-lookup-min": "--speculative-config.prompt_lookup_min",
            "--num-redundant-experts": "--eplb-config.num_redundant_experts",
            "--num-speculative-tokens": "--speculative-config.num_speculative_tokens",
            "--override-neuron-config": "--additional-config",
            "--override-pooler-config": "--pooler-config",
            "--qlora-adapter-name-or-path": "--lora-modules",
            "--rope-scaling": """--hf-overrides '{"rope_parameters": {"rope_type": "yarn", ...}}'""",
            "--rope-theta": """--hf-overrides '{"rope_parameters": {"rope_theta": ...}}'""",
            "--speculative-draft-tensor-parallel-size": "--speculative-config.draft_tensor_parallel_size",
            "--speculative-max-model-len": "--speculative-config.max_model_len",
            "--speculative-model": "--speculative-config.model",
            "--tokenizer-pool-size": "--renderer-num-workers",
            "--worker-use-ray": "--distributed-executor-backend ray",
            "VCLI_IDLE_WARM": "--idle-warm",
            "VLLM_ATTENTION_BACKEND": "--attention-backend",
        }.items()
    },
    "--compilation-config VALUE": "write a level as -O3 or leave it out",
    "--device": "leave it out, vLLM runs on the device that it was built for",
    "--disable-log-requests": "leave it out, requests are logged only with --enable-log-requests",
    "--enable-reasoning": "leave it out, --reasoning-parser is enough",
    "--limit-mm-per-prompt VALUE": """write image=4 as '{"image": 4}'""",
    "--max-seq-len-to-capture": "leave it out, or give --max-cudagraph-capture-size, which counts the tokens of a step",
    "--swap-space": "leave it out, or give --kv-offloading-size, GiB of memory for blocks of the KV cache",
    "--task": "leave out `generate`, write others as --runner pooling, and for a model that generates with --convert",
    # this program's own
    "--baseline": "compare servers with --vs and --vs-url",
    "--check": "bake again, what no longer applies is not used",
    "--engine-restarts": "let a service manager restart the server, or give --idle-stop",
    "--fail-over": "judge the `ratios` of --json",
    "--html": "the server's status page draws its start",
    "--http-max-json-depth": "leave it out, --http-max-json-values limits a body",
    "--http-max-messages": "leave it out, --http-max-json-values limits a body",
    "--http-max-tools": "leave it out, --http-max-json-values limits a body",
    "--http-request-timeout": "leave it out, an answer may take any time",
    "--list": "`hf cache ls` lists the models on disk",
    "--prefetch-block-size": "leave it out",
    "--prefetch-threads": "leave it out",
    "--reject-unknown-fields": "leave it out, unknown fields are ignored, as by vLLM",
    "--request-rate": "use `vllm bench serve`",
    "--request-timeout": "leave it out, an answer may take any time",
    "--responses-store-file": "leave it out, responses are kept in memory, up to --http-max-stored-size",
    "--retry-failed": "delete the failed lines of the output and run the command again",
    "--startup-trace": "give --startup-report, which `vllm-cli timeline` shows",
    "bench liveness": "`vllm-cli bench serve` measures /health beside its load",
    "preload reset": "`vllm-cli caches prune --all`",
    "preload show": "`vllm-cli caches`",
    "probes": "docs/containers.md has the probes",
    "VCLI_FRONT": "unset it",
    "VCLI_HUB_OFFLINE": 'set VCLI_LEAVE_OUT="offline hub" instead of 0',
    "VCLI_IMPORT_FILE": 'set VCLI_LEAVE_OUT="import file" instead of 0',
    "VCLI_LEAN_IMPORTS": 'set VCLI_LEAVE_OUT="lean imports" instead of 0',
    "VCLI_PROBE_REALTIME": 'set VCLI_LEAVE_OUT="real-time probes" instead of 0',
    "VLLM_USE_V1": "unset it, vLLM has no other engine",
}  # fmt: skip
