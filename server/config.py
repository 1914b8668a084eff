"""Typed configuration of the server's layers; standard library only, built once by the command line."""

import re
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Literal, get_args

from server.machine.cpus import usable_count

TokenizerMode = Literal["auto", "hf", "mistral", "deepseek_v32", "grok2"]
"""Whose tokenizer files and chat encoding; `auto` looks at the files."""
DTypeName = Literal["auto", "half", "float16", "bfloat16", "float", "float32"]
RunnerName = Literal["auto", "generate", "pooling"]
ConvertName = Literal["auto", "none", "embed", "classify"]
SeqPoolingType = Literal["CLS", "LAST", "MEAN"]
PoolingTask = Literal["embed", "classify", "token_embed", "token_classify"]

_MAX_ITEMS = 999
_ROOT_PATH = re.compile(r"/[!-~]*")


class ConfigError(ValueError):
    """A setting is out of range; `option` is the flag a user would write."""

    def __init__(self, option: str, value: object, expected: str) -> None:
        super().__init__(f"{option} must be {expected}, got {value!r}")
        self.option = option
        self.value = value


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
    """What the engine process needs to know."""

    dtype: DTypeName = "auto"
    """`auto` takes the checkpoint's own, float32 checkpoints become bfloat16 only where asked."""
    max_model_len: int | None = None
    """Most tokens of a sequence; None takes the model's own limit, as far as memory allows."""
    max_num_seqs: int = 128
    max_num_batched_tokens: int | None = None
    """Most tokens that one step computes: longer prompts are prefilled in chunks. None: 512 on CPU, 2048 on a GPU."""
    kv_cache_memory_bytes: int | None = None
    """None sizes the KV cache from free memory."""
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    seed: int = 0
    max_logprobs: int = 20
    trust_remote_code: bool = False
    num_threads: int | None = None
    """Threads of the forward pass; None takes the processors this process may use."""
    enable_prompt_embeds: bool = False
    """Prompts may come as embeddings; a model that cannot take them is an error at the start."""
    runner: RunnerName = "auto"
    """Whether the model generates text or pools it; `auto` tells it from the model's files."""
    convert: ConvertName = "auto"
    """What a pooling model is made into: a way to embed texts, or to classify them."""
    pooler: PoolerConfig = field(default_factory=PoolerConfig)

    def __post_init__(self) -> None:
        for option, value in (
            ("--max-num-seqs", self.max_num_seqs),
            ("--max-num-batched-tokens", self.max_num_batched_tokens),
            ("--max-model-len", self.max_model_len),
            ("--kv-cache-memory-bytes", self.kv_cache_memory_bytes),
        ):
            if value is not None and value < 1:
                raise ConfigError(option, value, "1 or more")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError("--gpu-memory-utilization", self.gpu_memory_utilization, "above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class RendererConfig:
    """What turns text into token ids and back."""

    num_workers: int = 1
    """Threads of the one pool that everything blocking goes through."""
    is_inline: bool = False
    """Do it on the event loop instead, to measure what the pool is worth."""
    tokenizer_mode: TokenizerMode = "auto"
    chat_template: str | None = None
    """A template's text; None takes the tokenizer's own."""
    chat_template_content_format: Literal["auto", "string", "openai"] = "auto"
    default_chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
    trust_request_chat_template: bool = False
    enable_prompt_embeds: bool = False
    """Take `prompt_embeds`, which the client computed, in the place of a text."""
    allowed_local_media_path: str | None = None
    """Folder below which `file://` URLs of images may point; none if not given."""
    allowed_media_domains: tuple[str, ...] = ()
    """Hosts that images are fetched from; one written as an address, or `localhost`, may be private."""
    image_fetch_timeout_s: float = 5.0
    media_url_allow_redirects: bool = True
    max_media_mb: int = 64
    """Largest image as it comes."""
    max_image_pixels: int = 89_478_485
    """Most pixels of an image: Pillow itself warns above."""
    limit_mm_per_prompt: dict[str, Any] = field(default_factory=dict)
    """Most inputs of a kind in one prompt: `{"image": 4}` or `{"image": {"count": 4}}`."""
    mm_processor_cache_gb: float = 4.0
    """Memory for images that are ready for the model, in GiB; 0 keeps none."""
    mm_processor_kwargs: dict[str, Any] = field(default_factory=dict)
    """Settings of the model's image processor."""
    trust_request_mm_kwargs: bool = False

    @property
    def max_images(self) -> int:
        """Most images in one prompt; vLLM's default where the operator names none."""
        limit = self.limit_mm_per_prompt.get("image", _MAX_ITEMS)
        return int(limit.get("count", _MAX_ITEMS) if isinstance(limit, dict) else limit)

    @property
    def max_media_bytes(self) -> int:
        return self.max_media_mb << 20

    def __post_init__(self) -> None:
        self._check_media()
        most = max(4, 4 * usable_count())
        if not 1 <= self.num_workers <= most:
            expected = f"from 1 to {most}: more than four for each usable processor only take turns"
            raise ConfigError("--renderer-num-workers", self.num_workers, expected)

    def _check_media(self) -> None:
        folder = self.allowed_local_media_path
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError("--allowed-local-media-path", folder, "a folder that exists")
        if self.mm_processor_cache_gb < 0:
            raise ConfigError("--mm-processor-cache-gb", self.mm_processor_cache_gb, "0 or more")
        for limit in self.limit_mm_per_prompt.values():
            count = limit.get("count", 0) if isinstance(limit, dict) else limit
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                expected = 'whole numbers, 0 or more, such as {"image": 4}'
                raise ConfigError("--limit-mm-per-prompt", self.limit_mm_per_prompt, expected)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What the HTTP side needs to know."""

    served_model_names: tuple[str, ...]
    """Names that requests may use; the first is the one that answers carry."""
    host: str | None = None
    port: int = 8000
    uds: str | None = None
    api_keys: tuple[str, ...] = ()
    api_key_file: str | None = None
    """Further keys, one in a line; read again when it changes."""
    api_key_everywhere: bool = False
    """Whether metrics, status and timeline need a key, too: all but probes."""
    root_path: str = ""
    response_role: str = "assistant"
    generation_config: str = "auto"
    """`auto` takes sampling defaults from the model's generation_config.json, `vllm` takes none, else a folder."""
    override_generation_config: dict[str, Any] = field(default_factory=dict)
    max_logprobs: int = 20
    return_tokens_as_token_ids: bool = False
    enable_prompt_tokens_details: bool = False
    enable_force_include_usage: bool = False
    enable_request_id_headers: bool = False
    enable_flash_late_interaction: bool = True
    """Score late interaction in the engine, which keeps the query's token embeddings, instead of in this process."""
    enable_log_requests: bool = False
    disable_access_log: bool = False
    disable_access_log_for_endpoints: tuple[str, ...] = ()
    """Paths that the access log leaves out."""
    disable_log_stats: bool = False
    log_stats_interval_s: float = 10.0
    """How often a line of figures is logged."""
    otlp_traces_endpoint: str | None = None
    """Where traces are sent; None sends none."""
    otlp_traces_protocol: str | None = None
    """`grpc` or `http/protobuf`; None tells it from the endpoint."""
    uvicorn_log_level: str = "info"
    timeout_keep_alive_s: int = 5
    shutdown_timeout_s: float = 30.0
    """After SIGTERM, how long running requests may take to finish."""
    drain_grace_s: float = 0.0
    """After SIGTERM, for how long at least the port stays open to refuse requests politely."""
    engine_watchdog_timeout_s: float = 300.0
    """How long the engine's loop may be silent before the engine is taken for dead; 0 does not watch it."""
    engine_restarts: int = 0
    """How many engines are started, one after the other, in the place of one that has died."""
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_ca_certs: str | None = None
    ssl_cert_reqs: int = 0
    """Whether clients show a certificate: 0 no, 1 they may, 2 they must (`ssl.CERT_*`)."""
    ssl_ciphers: str | None = None
    """Ciphers of TLS 1.2, as OpenSSL writes them; None takes Python's."""
    enable_ssl_refresh: bool = False
    """Take changed files of certificates without a restart."""

    def __post_init__(self) -> None:
        self._check_access()
        if not 0 <= self.port <= 65535:
            raise ConfigError("--port", self.port, "between 0 and 65535")
        if self.shutdown_timeout_s < 0:
            raise ConfigError("--shutdown-timeout", self.shutdown_timeout_s, "0 or more")
        for option, value in (
            ("--drain-grace", self.drain_grace_s),
            ("--engine-watchdog-timeout", self.engine_watchdog_timeout_s),
            ("--engine-restarts", self.engine_restarts),
        ):
            if not 0 <= value < inf:
                raise ConfigError(option, value, "0 or more")

    def _check_access(self) -> None:
        if self.root_path and not _ROOT_PATH.fullmatch(self.root_path):
            raise ConfigError("--root-path", self.root_path, "a path that begins with /, such as /api")
        if self.ssl_cert_reqs not in (0, 1, 2):
            raise ConfigError("--ssl-cert-reqs", self.ssl_cert_reqs, "0 (none), 1 (optional) or 2 (required)")
        if self.ssl_cert_reqs and self.ssl_ca_certs is None:
            expected = "0 without --ssl-ca-certs, which tells whose certificates are good"
            raise ConfigError("--ssl-cert-reqs", self.ssl_cert_reqs, expected)


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
