"""Settings of engine and renderer, built once by the command line. Imports no third-party package."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from base.errors import ConfigError
from base.machine.processors import usable_count
from base.setting import Group, Setting, check_ranges, from_variable, setting
from envs.registry import env

SeqPoolingType = Literal["CLS", "LAST", "MEAN"]
PoolingTask = Literal["embed", "classify", "token_embed", "token_classify"]
DTypeName = Literal["auto", "half", "float16", "bfloat16", "float", "float32"]
RunnerName = Literal["auto", "generate", "pooling"]
ConvertName = Literal["auto", "none", "embed", "classify"]
_MAX_ITEMS = 999


@dataclass(frozen=True, kw_only=True)
class PoolerConfig:
    """How a pooling model makes vectors or scores. If a field is None, the model's files set it."""

    task: PoolingTask | None = None
    """The task of /pooling if a model supports several tasks. Scores are computed with this task, too."""
    pooling_type: SeqPoolingType | Literal["ALL"] | None = None
    """Sets `seq_pooling_type` or `tok_pooling_type`, depending on the value."""
    seq_pooling_type: SeqPoolingType | None = None
    tok_pooling_type: Literal["ALL"] | None = None
    use_activation: bool | None = None
    """Whether embeddings are normalized and logits are turned into probabilities."""
    dimensions: int | None = None
    """The length of embeddings, for models that may shorten them."""

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
        if self.dimensions is not None and (type(self.dimensions) is not int or self.dimensions < 1):
            raise ConfigError("--pooler-config.dimensions", self.dimensions, "1 or more")

    @property
    def sequence_type(self) -> SeqPoolingType | None:
        """How the vectors of all tokens become one vector. None if neither field sets this."""
        if self.pooling_type is None or self.pooling_type == "ALL":
            return self.seq_pooling_type
        return self.pooling_type


@dataclass(frozen=True)
class ModelFiles:
    """The folders of the model's files, as found by `startup.files.model.file_plan`."""

    path: Path
    """The folder with config.json and weights."""
    tokenizer_path: Path
    """The folder with the tokenizer's files: `path`, unless `--tokenizer` names another one."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of the engine process."""

    help_group: ClassVar[Group] = "Memory and scheduling"

    hf_overrides: dict[str, Any] = setting(
        {}, "--hf-overrides", "Entries that replace those of the model's config.json.", group="Model"
    )
    trust_remote_code: bool = setting(
        False, "--trust-remote-code", "Run Python code that comes with the model.", group="Model"
    )
    dtype: DTypeName = setting(
        "auto", "--dtype", "Type of weights and activations. auto is the checkpoint's own.", group="Model"
    )
    max_model_len: int | None = setting(
        None,
        "--max-model-len",
        "Most tokens of prompt and answer together: 4096, 4k, 4K, or auto for the model's own limit.",
        syntax="token limit",
        minimum=1,
    )
    """A value of None means the model's own limit, or less if memory is too small for it."""
    allow_long_max_model_len: bool = from_variable(env.VLLM_ALLOW_LONG_MAX_MODEL_LEN)
    max_num_seqs: int = setting(128, "--max-num-seqs", "Most sequences that run at once.", minimum=1)
    max_num_batched_tokens: int | None = setting(
        None,
        "--max-num-batched-tokens",
        "Most tokens that one step computes, by default 2048.",
        syntax="count",
        minimum=1,
    )
    """Longer prompts are prefilled in several steps."""
    kv_cache_memory_bytes: int | None = setting(
        None,
        "--kv-cache-memory-bytes",
        "Size of the KV cache, such as 2G, by default what free memory allows.",
        syntax="count",
        minimum=1,
    )
    gpu_memory_utilization: float = setting(
        0.9,
        "--gpu-memory-utilization",
        "Share of the GPU's memory that may be used.",
        aliases=("--device-memory-utilization",),
        above=0,
        maximum=1,
    )
    enable_prefix_caching: bool = setting(
        True, "--enable-prefix-caching", "Reuse the KV cache of earlier prompts that begin alike."
    )
    runner: RunnerName = setting(
        "auto",
        "--runner",
        "Generate text, or pool it into embeddings, classes and scores. auto decides by the model's files.",
        group="Model",
    )
    convert: ConvertName = setting(
        "auto",
        "--convert",
        "Convert a model for another task into a pooling model that embeds or classifies.",
        group="Model",
    )
    pooler: PoolerConfig = field(
        default_factory=PoolerConfig,
        metadata=Setting(
            flag="--pooler-config",
            group="Model",
            help="How hidden states are pooled, e.g. --pooler-config.pooling_type MEAN, by default as the model's "
            "files say.",
        ),
    )
    seed: int = setting(0, "--seed", "Seed of all random numbers.", group="Model")
    num_threads: int | None = from_variable(env.OMP_NUM_THREADS)
    """The threads of the forward pass. None means one per processor that other processes leave free."""
    enable_prompt_embeds: bool = setting(
        False,
        "--enable-prompt-embeds",
        "Accept a prompt's embeddings in completions (`prompt_embeds`).",
        group="Requests and answers",
        after="--default-chat-template-kwargs",
    )
    """If True, a model that cannot take embeddings as prompts fails at the start."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class RendererConfig:
    """Settings of the renderer, which turns text into token ids and back, and prepares images."""

    help_group: ClassVar[Group] = "Requests and answers"

    num_workers: int = setting(
        2,
        "--renderer-num-workers",
        "Threads that turn text into tokens and back.",
        group="Memory and scheduling",
    )
    tokenizer_mode: str = setting(
        "auto",
        "--tokenizer-mode",
        "Format of the tokenizer's files. hf reads even those for which auto requires --engine vllm.",
        group="Model",
        syntax="tokenizer mode",
        after="--tokenizer",
    )
    chat_template: str | None = setting(
        None,
        "--chat-template",
        "Jinja chat template, as a file or inline, by default the tokenizer's.",
        syntax="template",
    )
    chat_template_content_format: Literal["auto", "string", "openai"] = setting(
        "auto",
        "--chat-template-content-format",
        "Whether the chat template gets messages' content as text (string) or as a list of parts (openai). auto "
        "decides by the template.",
    )
    default_chat_template_kwargs: dict[str, Any] = setting(
        {}, "--default-chat-template-kwargs", "Template variables that a request may override."
    )
    trust_remote_code: bool = setting(False, filled_by="--trust-remote-code")
    limit_mm_per_prompt: dict[str, Any] = setting(
        {},
        "--limit-mm-per-prompt",
        'Most images in one prompt, such as {"image": 4}, by default 999.',
        group="Images",
    )
    """Kind of input -> limit: `{"image": 4}` or `{"image": {"count": 4}}`."""
    allowed_media_domains: tuple[str, ...] = setting(
        (),
        "--allowed-media-domains",
        "Hosts that images may be fetched from, by default none. Write a private host as IP address or localhost.",
        group="Images",
        metavar="HOST...",
    )
    allowed_local_media_path: str | None = setting(
        None,
        "--allowed-local-media-path",
        "Folder for file:// URLs of images, by default none.",
        group="Images",
        metavar="FOLDER",
    )
    image_fetch_timeout_s: float = from_variable(env.VLLM_IMAGE_FETCH_TIMEOUT)
    media_url_allow_redirects: bool = from_variable(env.VLLM_MEDIA_URL_ALLOW_REDIRECTS)
    max_media_mb: int = from_variable(env.VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB)
    max_image_pixels: int = from_variable(env.VLLM_MAX_IMAGE_PIXELS)
    mm_processor_cache_gb: float = setting(
        4.0,
        "--mm-processor-cache-gb",
        "Memory for processed images, in GiB, at most a quarter of free memory.",
        group="Images",
        minimum=0,
    )
    """A size of 0 keeps no image in memory."""
    mm_processor_kwargs: dict[str, Any] = setting(
        {}, "--mm-processor-kwargs", "Settings of the model's image processor.", group="Images"
    )

    @property
    def max_images(self) -> int:
        """The most images in one prompt: the limit in `limit_mm_per_prompt`, or else vLLM's default."""
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
