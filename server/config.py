"""Typed configuration of the server's layers; standard library only, built once by the command line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from server.cpus import usable_count

DTypeName = Literal["auto", "half", "float16", "bfloat16", "float", "float32"]


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
class EngineConfig:
    """What the engine process needs to know."""

    dtype: DTypeName = "auto"
    """`auto` takes the checkpoint's own, float32 checkpoints become bfloat16 only where asked."""
    max_model_len: int | None = None
    """Most tokens of a sequence; None takes the model's own limit, as far as memory allows."""
    max_num_seqs: int = 128
    max_num_batched_tokens: int | None = None
    """Most tokens that one step computes: longer prompts are prefilled in chunks. None: 512 on CPU, 8192 on a GPU."""
    kv_cache_memory_bytes: int | None = None
    """None sizes the KV cache from free memory."""
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    seed: int = 0
    max_logprobs: int = 20
    trust_remote_code: bool = False
    num_threads: int | None = None
    """Threads of the forward pass; None takes the processors this process may use."""

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
    chat_template: str | None = None
    """A template's text; None takes the tokenizer's own."""
    chat_template_content_format: Literal["auto", "string", "openai"] = "auto"
    default_chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
    trust_request_chat_template: bool = False

    def __post_init__(self) -> None:
        most = max(4, 4 * usable_count())
        if not 1 <= self.num_workers <= most:
            expected = f"from 1 to {most}: more than four for each usable processor only take turns"
            raise ConfigError("--renderer-num-workers", self.num_workers, expected)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What the HTTP side needs to know."""

    served_model_names: tuple[str, ...]
    """Names that requests may use; the first is the one that answers carry."""
    host: str | None = None
    port: int = 8000
    uds: str | None = None
    api_keys: tuple[str, ...] = ()
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
    enable_log_requests: bool = False
    disable_access_log: bool = False
    uvicorn_log_level: str = "info"
    timeout_keep_alive_s: int = 5
    shutdown_timeout_s: float = 30.0
    """After SIGTERM, how long running requests may take to finish."""
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_ca_certs: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError("--port", self.port, "between 0 and 65535")
        if self.shutdown_timeout_s < 0:
            raise ConfigError("--shutdown-timeout", self.shutdown_timeout_s, "0 or more")
