"""The flags of `serve` that do what they say, grouped as its help shows them."""

from pathlib import Path
from typing import Final, get_args

import click

from envs.registry import ENGINES, LOG_FORMATS, LOGGING_LEVELS, env
from server.config import ConvertName, DTypeName, RunnerName, TokenizerMode
from startup.prefetch.options import PrefetchMode
from vllm_cli.flags.byte_size import ByteSize
from vllm_cli.flags.flag import HonouredFlag, Shape
from vllm_cli.flags.limits import LIMITS, OWN_LIMITS
from vllm_cli.flags.param_types import ChatTemplate, CommaList, HumanInt, JsonObject, JsonStrings, TokenLimit
from vllm_cli.flags.pooler_options import PoolerOptions
from vllm_cli.serve.log_config_file import LogConfigFile

RENDERER_INLINE = HonouredFlag(
    "--renderer-inline",
    fields=("renderer.is_inline",),
    shape=Shape.SWITCH,
    help="Do the renderer's work on the event loop: only to measure what the threads are worth.",
)

LIFE: Final = (
    HonouredFlag(
        "--drain-grace",
        fields=("server.drain_grace_s",),
        type=click.FLOAT,
        metavar="SECONDS",
        help="After SIGTERM, keep the port open at least so long, for load balancers; requests get 503.",
    ),
    HonouredFlag(
        "--engine-restarts",
        fields=("server.engine_restarts",),
        type=click.INT,
        metavar="N",
        help="Start another engine behind the same port where one has died, N times; 0 ends the server.",
    ),
    HonouredFlag(
        "--engine-watchdog-timeout",
        fields=("server.engine_watchdog_timeout_s",),
        type=click.FLOAT,
        metavar="SECONDS",
        help="Take an engine for dead whose loop is silent for so long; 0 does not watch it.",
    ),
)
"""Own flags, too: what becomes of an engine that dies, and of a server that is stopped."""

API_KEY_FILE: Final = HonouredFlag(
    "--api-key-file",
    fields=("server.api_key_file",),
    metavar="FILE",
    help="Further keys, one in a line; what is changed there counts within two seconds.",
)

API_KEY_EVERYWHERE: Final = HonouredFlag(
    "--api-key-everywhere",
    fields=("server.api_key_everywhere",),
    shape=Shape.SWITCH,
    help="Ask for a key at /metrics, /status.json and all else that is no probe, too.",
)

_MODEL = (
    HonouredFlag("--model", fields=("model.model",), help="The same as MODEL, which wins."),
    HonouredFlag(
        "--served-model-name",
        fields=("server.served_model_names",),
        shape=Shape.LIST,
        metavar="NAME...",
        help="Names that requests may use; answers carry the first. MODEL if not given.",
    ),
    HonouredFlag("--tokenizer", fields=("model.tokenizer",), help="Folder or hub id of another tokenizer."),
    HonouredFlag(
        "--tokenizer-mode",
        fields=("renderer.tokenizer_mode",),
        type=click.Choice(get_args(TokenizerMode)),
        help="Whose tokenizer files and chat format: auto looks at the files.",
    ),
    HonouredFlag("--revision", fields=("model.revision",), help="Branch, tag or commit on the hub."),
    HonouredFlag("--download-dir", fields=("model.download_dir",), help="Cache folder for models from the hub."),
    HonouredFlag(
        "--hf-token",
        fields=("model.hf_token",),
        shape=Shape.OPTIONAL,
        variable=env.HF_TOKEN,
        help="Token for gated and private models; without a value, the one that `hf auth login` keeps.",
    ),
    HonouredFlag(
        "--trust-remote-code",
        fields=("engine.trust_remote_code", "renderer.trust_remote_code"),
        shape=Shape.SWITCH,
        help="Run the Python code that a model brings along.",
    ),
    HonouredFlag(
        "--dtype",
        fields=("engine.dtype",),
        type=click.Choice(get_args(DTypeName)),
        help="Type of weights and activations; auto is the checkpoint's own.",
    ),
    HonouredFlag(
        "--runner",
        fields=("engine.runner",),
        type=click.Choice(get_args(RunnerName)),
        help="Generate text, or pool it into embeddings, classes and scores; auto tells it from the model's files.",
    ),
    HonouredFlag(
        "--convert",
        fields=("engine.convert",),
        type=click.Choice(get_args(ConvertName)),
        help="Make a pooling model of one that is for something else.",
    ),
    HonouredFlag(
        "--pooler-config",
        fields=("engine.pooler",),
        type=PoolerOptions(),
        help="How hidden states are pooled, such as --pooler-config.pooling_type MEAN; else as the model's files say.",
    ),
    HonouredFlag("--seed", fields=("engine.seed",), type=click.INT, help="Seed of everything random."),
)

_MEMORY = (
    HonouredFlag(
        "--max-model-len",
        fields=("engine.max_model_len",),
        type=TokenLimit(),
        help="Most tokens of prompt and answer together: 4096, 4k, 4K, or auto for the model's own limit.",
    ),
    HonouredFlag(
        "--max-num-seqs", fields=("engine.max_num_seqs",), type=click.INT, help="Most sequences that run at once."
    ),
    HonouredFlag(
        "--max-num-batched-tokens",
        fields=("engine.max_num_batched_tokens",),
        type=HumanInt(),
        help="Most tokens that one step computes.",
    ),
    HonouredFlag(
        "--kv-cache-memory-bytes",
        fields=("engine.kv_cache_memory_bytes",),
        type=HumanInt(),
        help="Size of the KV cache, such as 2G; sized from free memory if not given.",
    ),
    HonouredFlag(
        "--gpu-memory-utilization",
        ("--device-memory-utilization",),
        fields=("engine.gpu_memory_utilization",),
        type=click.FLOAT,
        help="Share of the GPU's memory that may be used.",
    ),
    HonouredFlag(
        "--enable-prefix-caching",
        fields=("engine.enable_prefix_caching",),
        shape=Shape.SWITCH,
        help="Reuse what was computed for a prompt that begins alike.",
    ),
    HonouredFlag(
        "--renderer-num-workers",
        fields=("renderer.num_workers",),
        type=click.INT,
        help="Threads that turn text into tokens and back.",
    ),
    RENDERER_INLINE,
)

_REQUESTS = (
    HonouredFlag(
        "--chat-template",
        fields=("renderer.chat_template",),
        type=ChatTemplate(),
        help="Jinja chat template, as a file or inline; the tokenizer's own if not given.",
    ),
    HonouredFlag(
        "--chat-template-content-format",
        fields=("renderer.chat_template_content_format",),
        type=click.Choice(("auto", "string", "openai")),
        help="Whether a template sees a message's content as text or as parts.",
    ),
    HonouredFlag(
        "--default-chat-template-kwargs",
        fields=("renderer.default_chat_template_kwargs",),
        type=JsonObject(),
        help="Template variables that a request may override.",
    ),
    HonouredFlag(
        "--trust-request-chat-template",
        fields=("renderer.trust_request_chat_template",),
        shape=Shape.SWITCH,
        help="Let a request bring a chat template of its own.",
    ),
    HonouredFlag(
        "--enable-prompt-embeds",
        fields=("engine.enable_prompt_embeds", "renderer.enable_prompt_embeds"),
        shape=Shape.SWITCH,
        help="Take `prompt_embeds` in completions: a prompt's embeddings, computed by the client.",
    ),
    HonouredFlag(
        "--enable-flash-late-interaction",
        fields=("server.enable_flash_late_interaction",),
        shape=Shape.SWITCH,
        help="Compute scores of late interaction in the engine process (default) instead of in this one.",
    ),
    HonouredFlag("--response-role", fields=("server.response_role",), help="Role of the answering message."),
    HonouredFlag(
        "--generation-config",
        fields=("server.generation_config",),
        metavar="auto|vllm|FOLDER",
        help="Sampling defaults from the model (auto), none (vllm), or those of a folder.",
    ),
    HonouredFlag(
        "--override-generation-config",
        fields=("server.override_generation_config",),
        type=JsonObject(),
        help="Sampling defaults on top of those.",
    ),
    HonouredFlag(
        "--max-logprobs",
        fields=("engine.max_logprobs", "server.max_logprobs"),
        type=click.INT,
        help="Most log-probabilities that a request may ask for per token.",
    ),
    HonouredFlag(
        "--return-tokens-as-token-ids",
        fields=("server.return_tokens_as_token_ids",),
        shape=Shape.SWITCH,
        help="Show tokens in log-probabilities as `token_id:123`.",
    ),
    HonouredFlag(
        "--enable-prompt-tokens-details",
        fields=("server.enable_prompt_tokens_details",),
        shape=Shape.SWITCH,
        help="Tell in `usage` how many prompt tokens were cached.",
    ),
    HonouredFlag(
        "--enable-force-include-usage",
        fields=("server.enable_force_include_usage",),
        shape=Shape.SWITCH,
        help="Send `usage` with every stream.",
    ),
)

_PICTURES = (
    HonouredFlag(
        "--limit-mm-per-prompt",
        fields=("renderer.limit_mm_per_prompt",),
        type=JsonObject(),
        help='Most images in one prompt, such as {"image": 4}.',
    ),
    HonouredFlag(
        "--allowed-media-domains",
        fields=("renderer.allowed_media_domains",),
        shape=Shape.LIST,
        metavar="HOST...",
        help="Hosts that images are fetched from; none if not given. Only an address, or localhost, may be private.",
    ),
    HonouredFlag(
        "--allowed-local-media-path",
        fields=("renderer.allowed_local_media_path",),
        metavar="FOLDER",
        help="Folder below which file:// URLs of images may point; none if not given.",
    ),
    HonouredFlag(
        "--mm-processor-cache-gb",
        fields=("renderer.mm_processor_cache_gb",),
        type=click.FLOAT,
        help="Memory for images that are ready for the model, in GiB; at most a quarter of what is free.",
    ),
    HonouredFlag(
        "--mm-processor-kwargs",
        fields=("renderer.mm_processor_kwargs",),
        type=JsonObject(),
        help="Settings of the model's image processor.",
    ),
    HonouredFlag(
        "--trust-request-mm-kwargs",
        fields=("renderer.trust_request_mm_kwargs",),
        shape=Shape.SWITCH,
        help="Let a request bring settings of the image processor.",
    ),
)

_SERVER = (
    HonouredFlag("--host", fields=("server.host",), help="Address to listen on; every one if not given."),
    HonouredFlag("--port", fields=("server.port",), type=click.INT, help="Port to listen on."),
    HonouredFlag(
        "--uds", fields=("server.uds",), metavar="PATH", help="Unix socket to listen on, instead of host and port."
    ),
    HonouredFlag(
        "--api-key",
        fields=("server.api_keys",),
        shape=Shape.LIST,
        variable=env.VLLM_API_KEY,
        metavar="KEY...",
        help="Keys of which a request must carry one; a file or the variable keeps them from other users' eyes.",
    ),
    API_KEY_FILE,
    API_KEY_EVERYWHERE,
    HonouredFlag("--root-path", fields=("server.root_path",), help="Path under which a proxy shows the server."),
    HonouredFlag(
        "--allowed-origins", fields=("server.allowed_origins",), type=JsonStrings(), help="Origins allowed by CORS."
    ),
    HonouredFlag(
        "--allowed-methods", fields=("server.allowed_methods",), type=JsonStrings(), help="Methods allowed by CORS."
    ),
    HonouredFlag(
        "--allowed-headers", fields=("server.allowed_headers",), type=JsonStrings(), help="Headers allowed by CORS."
    ),
    HonouredFlag(
        "--allow-credentials",
        fields=("server.allow_credentials",),
        shape=Shape.SWITCH,
        help="Allow credentials by CORS.",
    ),
    HonouredFlag("--ssl-keyfile", fields=("server.ssl_keyfile",), metavar="FILE", help="Private key for HTTPS."),
    HonouredFlag("--ssl-certfile", fields=("server.ssl_certfile",), metavar="FILE", help="Certificate for HTTPS."),
    HonouredFlag("--ssl-ca-certs", fields=("server.ssl_ca_certs",), metavar="FILE", help="CAs of clients."),
    HonouredFlag(
        "--ssl-cert-reqs",
        fields=("server.ssl_cert_reqs",),
        type=click.INT,
        metavar="0|1|2",
        help="Whether clients show a certificate: 0 no, 1 they may, 2 they must.",
    ),
    HonouredFlag("--ssl-ciphers", fields=("server.ssl_ciphers",), help="Ciphers of TLS 1.2, as OpenSSL writes them."),
    HonouredFlag(
        "--enable-ssl-refresh",
        fields=("server.enable_ssl_refresh",),
        shape=Shape.SWITCH,
        help="Take changed files of certificates within two seconds, without a restart.",
    ),
    HonouredFlag(
        "--enable-request-id-headers",
        fields=("server.enable_request_id_headers",),
        shape=Shape.SWITCH,
        help="Send an X-Request-Id header with every answer.",
    ),
    HonouredFlag(
        "--shutdown-timeout",
        fields=("server.shutdown_timeout_s",),
        type=click.FLOAT,
        metavar="SECONDS",
        help="How long running requests may take to finish after SIGTERM.",
    ),
    *LIFE,
)

LOG_FORMAT: Final = HonouredFlag(
    "--log-format",
    fields=("log_format",),
    type=click.Choice(LOG_FORMATS),
    variable=env.VCLI_LOG_FORMAT,
    help="json makes every line of every process a JSON object.",
)

_LOGGING = (
    HonouredFlag(
        "--log-level",
        fields=("logging_level",),
        type=click.Choice(LOGGING_LEVELS, case_sensitive=False),
        variable=env.VLLM_LOGGING_LEVEL,
        help="Least severe level that is logged.",
    ),
    LOG_FORMAT,
    HonouredFlag(
        "--log-config-file",
        fields=("log_config",),
        type=LogConfigFile(),
        variable=env.VLLM_LOGGING_CONFIG_PATH,
        metavar="FILE",
        help="JSON file with a configuration of Python's logging; wins over level and format.",
    ),
    HonouredFlag(
        "--uvicorn-log-level",
        fields=("server.uvicorn_log_level",),
        type=click.Choice(("critical", "error", "warning", "info", "debug", "trace")),
        help="The same for the HTTP server.",
    ),
    HonouredFlag(
        "--enable-log-requests", fields=("server.enable_log_requests",), shape=Shape.SWITCH, help="Log every request."
    ),
    HonouredFlag(
        "--disable-uvicorn-access-log",
        fields=("server.disable_access_log",),
        shape=Shape.SWITCH,
        help="Do not log a line per request.",
    ),
    HonouredFlag(
        "--disable-access-log-for-endpoints",
        fields=("server.disable_access_log_for_endpoints",),
        type=CommaList(),
        metavar="PATH,...",
        help="Paths whose requests are not logged, such as /health,/metrics.",
    ),
    HonouredFlag(
        "--disable-log-stats",
        fields=("server.disable_log_stats",),
        shape=Shape.SWITCH,
        help="Do not log throughput, requests and cache use every ten seconds (VLLM_LOG_STATS_INTERVAL).",
    ),
    HonouredFlag(
        "--otlp-traces-endpoint",
        fields=("server.otlp_traces_endpoint",),
        metavar="URL",
        help="Send traces there by OpenTelemetry, such as http://collector:4318/v1/traces; needs the extra `otel`.",
    ),
)

ENGINE: Final = HonouredFlag(
    "--engine",
    type=click.Choice(ENGINES),
    variable=env.VCLI_ENGINE,
    help="vllm: the installed vLLM, with all its flags; embedded: this package's engine; auto: vLLM if it is there.",
)

CONFIG: Final = HonouredFlag(
    "--config",
    metavar="FILE",
    help="YAML file of settings, named as the flags are; flags and variables win over it.",
)

START: Final = (
    HonouredFlag(
        "--preflight-only",
        shape=Shape.SWITCH,
        help="Check everything that could make the start fail, tell, and end: exit code 0 or 3.",
    ),
    HonouredFlag("--json", shape=Shape.SWITCH, help="With --preflight-only: tell it as JSON."),
    HonouredFlag(
        "--startup-timeout",
        fields=("startup_timeout_s",),
        type=click.FLOAT,
        metavar="SECONDS",
        help="End a start that takes longer, naming the phase and where every thread is.",
    ),
    HonouredFlag(
        "--startup-report",
        fields=("startup_report",),
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Write the start's timeline as JSON; `vllm-cli timeline FILE` draws it.",
    ),
    HonouredFlag(
        "--startup-trace",
        fields=("startup_trace",),
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Write the start's timeline for Perfetto or chrome://tracing.",
    ),
    HonouredFlag(
        "--prefetch",
        fields=("prefetch.mode",),
        type=click.Choice(get_args(PrefetchMode)),
        help="Read the weights into the page cache while others import; auto does so where it can help.",
    ),
    HonouredFlag("--prefetch-threads", fields=("prefetch.num_threads",), type=click.INT, help="Threads that read."),
    HonouredFlag(
        "--prefetch-block-size",
        fields=("prefetch.block_bytes",),
        type=ByteSize(),
        metavar="SIZE",
        help="What a thread reads at once, such as 16MiB.",
    ),
)
"""Flags of our own: they carry prefixes that vLLM does not use."""

OWN: Final = (ENGINE, API_KEY_FILE, API_KEY_EVERYWHERE, RENDERER_INLINE, LOG_FORMAT, *LIFE, *OWN_LIMITS, *START)

GROUPS: Final = {
    "Start": (ENGINE, CONFIG, *START),
    "Model": _MODEL,
    "Memory and scheduling": _MEMORY,
    "Requests and answers": _REQUESTS,
    "Images": _PICTURES,
    "HTTP server": _SERVER,
    "Limits": LIMITS,
    "Logging": _LOGGING,
}

HONOURED: Final = tuple(flag for group in GROUPS.values() for flag in group)
