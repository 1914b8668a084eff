"""Typed configuration of the server's layers; standard library only, built once by the command line."""

import re
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Literal, get_args

from envs.registry import env
from server.errors import ConfigError
from server.machine.cpus import usable_count
from server.setting import Setting, check_ranges, from_variable, setting

TokenizerMode = Literal["auto", "hf", "mistral", "deepseek_v32", "grok2"]
"""Whose tokenizer files and chat encoding; `auto` looks at the files."""
DTypeName = Literal["auto", "half", "float16", "bfloat16", "float", "float32"]
RunnerName = Literal["auto", "generate", "pooling"]
ConvertName = Literal["auto", "none", "embed", "classify"]
SeqPoolingType = Literal["CLS", "LAST", "MEAN"]
PoolingTask = Literal["embed", "classify", "token_embed", "token_classify"]

_MAX_ITEMS = 999
_ROOT_PATH = re.compile(r"/[!-~]*")


@dataclass(frozen=True)
class ModelFiles:
    """Where the resolved model lies on disk: facts, found by `startup.model.source`, not wishes."""

    path: Path
    """Folder with config.json and weights."""
    tokenizer_path: Path
    """Folder with the tokenizer's files; the same one unless `--tokenizer` says otherwise."""


@dataclass(frozen=True, kw_only=True)
class PoolerConfig:
    """How a pooling model makes numbers of its hidden states (`--pooler-config`); None is the model's own way."""

    task: PoolingTask | None = None
    """What /pooling does where the model can do several things, and what scores are made of."""
    pooling_type: SeqPoolingType | Literal["ALL"] | None = None
    """Short for one of the next two."""
    seq_pooling_type: SeqPoolingType | None = None
    tok_pooling_type: Literal["ALL"] | None = None
    use_activation: bool | None = None
    """Whether embeddings are normalized, and logits become probabilities."""
    dimensions: int | None = None
    """Length of embeddings, for models that may be cut."""
    logit_mean: float | None = None
    logit_sigma: float | None = None
    """Logits are calibrated before their activation: (logit - mean) / sigma."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("task", get_args(PoolingTask)),
            ("pooling_type", (*get_args(SeqPoolingType), "ALL")),
            ("seq_pooling_type", get_args(SeqPoolingType)),
            ("tok_pooling_type", ("ALL",)),
            ("use_activation", (True, False)),
        ):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ConfigError(f"--pooler-config.{name}", value, f"one of {', '.join(map(str, choices))}")
        if self.pooling_type is not None and (self.seq_pooling_type or self.tok_pooling_type):
            raise ConfigError(
                "--pooler-config.pooling_type", self.pooling_type, "left out where seq_ or tok_pooling_type is given"
            )
        if self.dimensions is not None and not _is_positive_int(self.dimensions):
            raise ConfigError("--pooler-config.dimensions", self.dimensions, "1 or more")
        for name in ("logit_mean", "logit_sigma"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int | float) or (name == "logit_sigma" and value == 0)):
                raise ConfigError(f"--pooler-config.{name}", value, "a number, and logit_sigma not 0")

    @property
    def sequence_type(self) -> SeqPoolingType | None:
        """How one vector is made of all tokens', where that is given."""
        if self.pooling_type is None or self.pooling_type == "ALL":
            return self.seq_pooling_type
        return self.pooling_type


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of the engine process."""

    trust_remote_code: bool = setting(
        False, flag="--trust-remote-code", group="Model", help="Run Python code that comes with the model."
    )
    dtype: DTypeName = setting(
        "auto", flag="--dtype", group="Model", help="Type of weights and activations; auto is the checkpoint's own."
    )
    max_model_len: int | None = setting(
        None,
        flag="--max-model-len",
        group="Memory and scheduling",
        syntax="token limit",
        minimum=1,
        help="Most tokens of prompt and answer together: 4096, 4k, 4K, or auto for the model's own limit.",
    )
    """None takes the model's own limit, as far as memory allows."""
    max_num_seqs: int = setting(
        128,
        flag="--max-num-seqs",
        group="Memory and scheduling",
        minimum=1,
        help="Most sequences that run at once.",
    )
    max_num_batched_tokens: int | None = setting(
        None,
        flag="--max-num-batched-tokens",
        group="Memory and scheduling",
        syntax="count",
        minimum=1,
        help="Most tokens that one step computes; 512 on a CPU and 2048 on a GPU if not given.",
    )
    """Longer prompts are prefilled in chunks."""
    kv_cache_memory_bytes: int | None = setting(
        None,
        flag="--kv-cache-memory-bytes",
        group="Memory and scheduling",
        syntax="count",
        minimum=1,
        help="Size of the KV cache, such as 2G; sized from free memory if not given.",
    )
    gpu_memory_utilization: float = setting(
        0.9,
        flag="--gpu-memory-utilization",
        aliases=("--device-memory-utilization",),
        group="Memory and scheduling",
        above=0,
        maximum=1,
        help="Share of the GPU's memory that may be used.",
    )
    enable_prefix_caching: bool = setting(
        True,
        flag="--enable-prefix-caching",
        group="Memory and scheduling",
        help="Reuse the KV cache of earlier prompts that begin alike.",
    )
    runner: RunnerName = setting(
        "auto",
        flag="--runner",
        group="Model",
        help="Generate text, or pool it into embeddings, classes and scores; auto decides by the model's files.",
    )
    convert: ConvertName = setting(
        "auto",
        flag="--convert",
        group="Model",
        help="Convert a model for another task into a pooling model that embeds or classifies.",
    )
    pooler: PoolerConfig = field(
        default_factory=PoolerConfig,
        metadata=Setting(
            flag="--pooler-config",
            group="Model",
            help="How hidden states are pooled, such as --pooler-config.pooling_type MEAN; else as the model's files"
            " say.",
        ),
    )
    seed: int = setting(0, flag="--seed", group="Model", help="Seed of all random numbers.")
    max_logprobs: int = setting(20, filled_by="--max-logprobs")
    num_threads: int | None = from_variable(env.OMP_NUM_THREADS)
    """Threads of the forward pass; None takes the processors this process may use."""
    enable_prompt_embeds: bool = setting(False, filled_by="--enable-prompt-embeds")
    """A model that cannot take embeddings as prompts is an error at the start."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class RendererConfig:
    """Settings of the renderer, which turns text into token ids and back, and prepares images."""

    num_workers: int = setting(
        1,
        flag="--renderer-num-workers",
        group="Memory and scheduling",
        help="Threads of the renderer pool, which turn text into tokens and back.",
    )
    is_inline: bool = setting(
        False,
        flag="--renderer-inline",
        group="Memory and scheduling",
        help="Render on the event loop instead of in the renderer pool; only for comparisons of the two.",
    )
    tokenizer_mode: TokenizerMode = setting(
        "auto",
        flag="--tokenizer-mode",
        group="Model",
        after="--tokenizer",
        help="Format of tokenizer files and chat encoding; auto decides by the files.",
    )
    chat_template: str | None = setting(
        None,
        flag="--chat-template",
        group="Requests and answers",
        syntax="template",
        help="Jinja chat template, as a file or inline; the tokenizer's own if not given.",
    )
    """The template's text."""
    chat_template_content_format: Literal["auto", "string", "openai"] = setting(
        "auto",
        flag="--chat-template-content-format",
        group="Requests and answers",
        help="Whether a template gets a message's content as text or as parts.",
    )
    default_chat_template_kwargs: dict[str, Any] = setting(
        {},
        flag="--default-chat-template-kwargs",
        group="Requests and answers",
        help="Template variables that a request may override.",
    )
    trust_remote_code: bool = setting(False, filled_by="--trust-remote-code")
    trust_request_chat_template: bool = setting(
        False,
        flag="--trust-request-chat-template",
        group="Requests and answers",
        help="Allow a request to contain its own chat template.",
    )
    enable_prompt_embeds: bool = setting(
        False,
        flag="--enable-prompt-embeds",
        group="Requests and answers",
        help="Accept `prompt_embeds` in completions: a prompt's embeddings, computed by the client.",
    )
    limit_mm_per_prompt: dict[str, Any] = setting(
        {},
        flag="--limit-mm-per-prompt",
        group="Images",
        help='Most images in one prompt, such as {"image": 4}.',
    )
    """By kind of input: `{"image": 4}` or `{"image": {"count": 4}}`."""
    allowed_media_domains: tuple[str, ...] = setting(
        (),
        flag="--allowed-media-domains",
        group="Images",
        metavar="HOST...",
        help="Hosts that images are fetched from; none if not given. Only an address, or localhost, may be private.",
    )
    allowed_local_media_path: str | None = setting(
        None,
        flag="--allowed-local-media-path",
        group="Images",
        metavar="FOLDER",
        help="Folder below which file:// URLs of images may point; none if not given.",
    )
    image_fetch_timeout_s: float = from_variable(env.VLLM_IMAGE_FETCH_TIMEOUT)
    media_url_allow_redirects: bool = from_variable(env.VLLM_MEDIA_URL_ALLOW_REDIRECTS)
    max_media_mb: int = from_variable(env.VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB)
    max_image_pixels: int = from_variable(env.VLLM_MAX_IMAGE_PIXELS)
    mm_processor_cache_gb: float = setting(
        4.0,
        flag="--mm-processor-cache-gb",
        group="Images",
        minimum=0,
        help="Memory for images that are ready for the model, in GiB; at most a quarter of what is free.",
    )
    """0 keeps no image."""
    mm_processor_kwargs: dict[str, Any] = setting(
        {}, flag="--mm-processor-kwargs", group="Images", help="Settings of the model's image processor."
    )
    trust_request_mm_kwargs: bool = setting(
        False,
        flag="--trust-request-mm-kwargs",
        group="Images",
        help="Allow a request to contain settings of the image processor.",
    )

    @property
    def max_images(self) -> int:
        """Most images in one prompt; vLLM's default where `limit_mm_per_prompt` names none."""
        limit = self.limit_mm_per_prompt.get("image", _MAX_ITEMS)
        return int(limit.get("count", _MAX_ITEMS) if isinstance(limit, dict) else limit)

    @property
    def max_media_bytes(self) -> int:
        return self.max_media_mb << 20

    def __post_init__(self) -> None:
        self._check_media()
        check_ranges(self)
        most = max(4, 4 * usable_count())
        if not 1 <= self.num_workers <= most:
            expected = f"from 1 to {most}: more than four for each usable processor only take turns"
            raise ConfigError("--renderer-num-workers", self.num_workers, expected)

    def _check_media(self) -> None:
        folder = self.allowed_local_media_path
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError("--allowed-local-media-path", folder, "a folder that exists")
        for limit in self.limit_mm_per_prompt.values():
            count = limit.get("count", 0) if isinstance(limit, dict) else limit
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                expected = 'whole numbers, 0 or more, such as {"image": 4}'
                raise ConfigError("--limit-mm-per-prompt", self.limit_mm_per_prompt, expected)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings of the HTTP server."""

    enable_flash_late_interaction: bool = setting(
        True,
        flag="--enable-flash-late-interaction",
        group="Requests and answers",
        help="Compute late-interaction scores in the engine process (default) instead of in the API process.",
    )
    """The engine then keeps the query's token embeddings."""
    response_role: str = setting(
        "assistant", flag="--response-role", group="Requests and answers", help="Role of the generated message."
    )
    generation_config: str = setting(
        "auto",
        flag="--generation-config",
        group="Requests and answers",
        metavar="auto|vllm|FOLDER",
        help="Sampling defaults from the model (auto), none (vllm), or those of a folder.",
    )
    """`auto` reads the model's generation_config.json."""
    override_generation_config: dict[str, Any] = setting(
        {},
        flag="--override-generation-config",
        group="Requests and answers",
        help="Sampling defaults that take precedence over those.",
    )
    max_logprobs: int = setting(
        20,
        flag="--max-logprobs",
        group="Requests and answers",
        help="Most log-probabilities that a request may ask for per token.",
    )
    return_tokens_as_token_ids: bool = setting(
        False,
        flag="--return-tokens-as-token-ids",
        group="Requests and answers",
        help="Show tokens in log-probabilities as `token_id:123`.",
    )
    enable_prompt_tokens_details: bool = setting(
        False,
        flag="--enable-prompt-tokens-details",
        group="Requests and answers",
        help="Report the number of cached prompt tokens in `usage`.",
    )
    enable_force_include_usage: bool = setting(
        False,
        flag="--enable-force-include-usage",
        group="Requests and answers",
        help="Send `usage` with every stream.",
    )
    served_model_names: tuple[str, ...] = field(
        metadata=Setting(
            flag="--served-model-name",
            group="Model",
            after="--model",
            metavar="NAME...",
            help="Names that requests may use; responses contain the first. MODEL if not given.",
        )
    )
    host: str | None = setting(
        None, flag="--host", group="HTTP server", help="Address to listen on; every one if not given."
    )
    port: int = setting(8000, flag="--port", group="HTTP server", minimum=0, maximum=65535, help="Port to listen on.")
    uds: str | None = setting(
        None,
        flag="--uds",
        group="HTTP server",
        metavar="PATH",
        help="Unix socket to listen on, instead of host and port.",
    )
    api_keys: tuple[str, ...] = setting(
        (),
        flag="--api-key",
        group="HTTP server",
        variable=env.VLLM_API_KEY,
        metavar="KEY...",
        help="Keys of which a request must contain one; other users cannot read a file or the variable.",
    )
    api_key_file: str | None = setting(
        None,
        flag="--api-key-file",
        group="HTTP server",
        metavar="FILE",
        help="Further keys, one per line; changes take effect within two seconds.",
    )
    api_key_everywhere: bool = setting(
        False,
        flag="--api-key-everywhere",
        group="HTTP server",
        help="Require a key at /metrics, /status.json and all other routes but probes, too.",
    )
    root_path: str = setting(
        "", flag="--root-path", group="HTTP server", help="Path under which a proxy exposes the server."
    )
    allowed_origins: tuple[str, ...] = setting(
        (), flag="--allowed-origins", group="HTTP server", syntax="JSON list", help="Origins allowed by CORS."
    )
    allowed_methods: tuple[str, ...] = setting(
        ("*",), flag="--allowed-methods", group="HTTP server", syntax="JSON list", help="Methods allowed by CORS."
    )
    allowed_headers: tuple[str, ...] = setting(
        ("*",), flag="--allowed-headers", group="HTTP server", syntax="JSON list", help="Headers allowed by CORS."
    )
    allow_credentials: bool = setting(
        False, flag="--allow-credentials", group="HTTP server", help="Allow credentials by CORS."
    )
    ssl_keyfile: str | None = setting(
        None, flag="--ssl-keyfile", group="HTTP server", metavar="FILE", help="Private key for HTTPS."
    )
    ssl_certfile: str | None = setting(
        None, flag="--ssl-certfile", group="HTTP server", metavar="FILE", help="Certificate for HTTPS."
    )
    ssl_ca_certs: str | None = setting(
        None, flag="--ssl-ca-certs", group="HTTP server", metavar="FILE", help="CAs of client certificates."
    )
    ssl_cert_reqs: int = setting(
        0,
        flag="--ssl-cert-reqs",
        group="HTTP server",
        metavar="0|1|2",
        minimum=0,
        maximum=2,
        expected="0 (none), 1 (optional) or 2 (required)",
        help="Whether clients present a certificate: 0 no, 1 optional, 2 required.",
    )
    """Values of `ssl.CERT_*`."""
    ssl_ciphers: str | None = setting(
        None,
        flag="--ssl-ciphers",
        group="HTTP server",
        help="Ciphers of TLS 1.2 in OpenSSL's syntax; Python's if not given.",
    )
    enable_ssl_refresh: bool = setting(
        False,
        flag="--enable-ssl-refresh",
        group="HTTP server",
        help="Reload changed certificate files within two seconds, without a restart.",
    )
    enable_request_id_headers: bool = setting(
        False,
        flag="--enable-request-id-headers",
        group="HTTP server",
        help="Send an X-Request-Id header with every response.",
    )
    timeout_keep_alive_s: int = from_variable(env.VLLM_HTTP_TIMEOUT_KEEP_ALIVE)
    shutdown_timeout_s: float = setting(
        30.0,
        flag="--shutdown-timeout",
        group="HTTP server",
        minimum=0,
        help="How long running requests may take to finish after SIGTERM.",
    )
    drain_grace_s: float = setting(
        0.0,
        flag="--drain-grace",
        group="HTTP server",
        minimum=0,
        below=inf,
        help="After SIGTERM, keep the port open at least so long, for load balancers; requests get 503.",
    )
    engine_restarts: int = setting(
        0,
        flag="--engine-restarts",
        group="HTTP server",
        metavar="N",
        minimum=0,
        help="Restart a dead engine behind the same port, N times; 0 ends the server.",
    )
    engine_watchdog_timeout_s: float = setting(
        300.0,
        flag="--engine-watchdog-timeout",
        group="HTTP server",
        minimum=0,
        below=inf,
        help="Declare the engine dead when its loop is silent for so long; 0 disables the watchdog.",
    )
    uvicorn_log_level: str = setting(
        "info",
        flag="--uvicorn-log-level",
        group="Logging",
        choices=("critical", "error", "warning", "info", "debug", "trace"),
        help="Least severe level that the HTTP server logs.",
    )
    enable_log_requests: bool = setting(False, flag="--enable-log-requests", group="Logging", help="Log every request.")
    disable_access_log: bool = setting(
        False, flag="--disable-uvicorn-access-log", group="Logging", help="Do not log a line per request."
    )
    disable_access_log_for_endpoints: tuple[str, ...] = setting(
        (),
        flag="--disable-access-log-for-endpoints",
        group="Logging",
        syntax="comma list",
        metavar="PATH,...",
        help="Paths whose requests are not logged, such as /health,/metrics.",
    )
    disable_log_stats: bool = setting(
        False,
        flag="--disable-log-stats",
        group="Logging",
        help="Do not log throughput, requests and cache use every ten seconds (VLLM_LOG_STATS_INTERVAL).",
    )
    log_stats_interval_s: float = from_variable(env.VLLM_LOG_STATS_INTERVAL)
    otlp_traces_endpoint: str | None = setting(
        None,
        flag="--otlp-traces-endpoint",
        group="Logging",
        metavar="URL",
        help="Send OpenTelemetry traces there, such as http://collector:4318/v1/traces; needs the extra `otel`.",
    )
    otlp_traces_protocol: str | None = from_variable(env.OTEL_EXPORTER_OTLP_TRACES_PROTOCOL)
    """`grpc` or `http/protobuf`; None derives it from the endpoint."""

    def __post_init__(self) -> None:
        check_ranges(self)
        self._check_access()

    def _check_access(self) -> None:
        if self.root_path and not _ROOT_PATH.fullmatch(self.root_path):
            raise ConfigError("--root-path", self.root_path, "a path that begins with /, such as /api")
        if self.ssl_cert_reqs and self.ssl_ca_certs is None:
            expected = "0 without --ssl-ca-certs, which names the trusted CAs"
            raise ConfigError("--ssl-cert-reqs", self.ssl_cert_reqs, expected)


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
