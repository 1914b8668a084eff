"""Settings of the embedded engine's HTTP server. Imports no third-party package."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from base.errors import ConfigError
from base.server_settings import LifecycleConfig, LoggingConfig, NetworkConfig, TlsConfig
from base.setting import Group, Setting, check_ranges, from_variable, setting
from envs.registry import env

DisabledThinkingEffort = Literal["auto", "none", "low", "medium", "high", "xhigh", "max"]

AUTO: Final = "auto"
"""The value with which the model's files determine the format."""

TOOL_FORMATS: Final = (
    "deepseek_v3",
    "deepseek_v31",
    "ernie45",
    "functiongemma",
    "gemma4",
    "gigachat3",
    "glm45",
    "glm47",
    "granite",
    "granite-20b-fc",
    "granite4",
    "hermes",
    "hunyuan_a13b",
    "internlm",
    "jamba",
    "lfm2",
    "ling3",
    "llama3_json",
    "llama4_json",
    "llama4_pythonic",
    "mimo",
    "mistral",
    "olmo3",
    "openai",
    "phi4_mini_json",
    "poolside_v1",
    "pythonic",
    "qwen3_coder",
    "qwen3_json",
    "qwen3_xml",
    "seed_oss",
    "step3p5",
    "xlam",
)
"""Values of `--tool-call-parser`."""

REASONING_FORMATS: Final = (
    "deepseek_r1",
    "deepseek_v3",
    "ernie45",
    "gemma4",
    "glm45",
    "glm47",
    "granite",
    "granite_thinking_parser",
    "holo2",
    "hunyuan_a13b",
    "ling3",
    "mimo",
    "minicpmv",
    "mistral",
    "nemotron_v3",
    "olmo3",
    "openai_gptoss",
    "poolside_v1",
    "qwen3",
    "seed_oss",
    "step3p5",
)
"""Values of `--reasoning-parser`."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Settings for generating answers: sampling defaults, limits and parsers."""

    help_group: ClassVar[Group] = "Requests and answers"

    generation_config: str = setting(
        "auto",
        "--generation-config",
        "Sampling defaults from the model (auto), none (vllm), or those of a folder.",
        metavar="auto|vllm|FOLDER",
    )
    """`auto` reads the model's generation_config.json."""
    override_generation_config: dict[str, Any] = setting(
        {}, "--override-generation-config", "Sampling defaults that take precedence over those of --generation-config."
    )
    max_logprobs: int = setting(20, "--max-logprobs", "Most log-probabilities that a request may ask for per token.")
    return_tokens_as_token_ids: bool = setting(
        False, "--return-tokens-as-token-ids", "Show tokens in log-probabilities as `token_id:123`."
    )
    enable_prompt_tokens_details: bool = setting(
        False, "--enable-prompt-tokens-details", "Report the number of cached prompt tokens in `usage`."
    )
    enable_force_include_usage: bool = setting(False, "--enable-force-include-usage", "Send `usage` with every stream.")
    anthropic_disabled_thinking_effort: DisabledThinkingEffort = setting(
        "auto",
        "--anthropic-disabled-thinking-effort",
        "reasoning_effort of requests to /v1/messages that disable thinking. auto means none, or low if the chat "
        "template ignores none.",
    )
    enable_auto_tool_choice: bool = setting(
        False, "--enable-auto-tool-choice", "Let the model choose tools. Needs --tool-call-parser."
    )
    tool_call_parser: str | None = setting(
        None,
        "--tool-call-parser",
        "Format of the model's tool calls, by vLLM's name. auto detects it from the model's files.",
        metavar="NAME",
    )
    reasoning_parser: str | None = setting(
        None,
        "--reasoning-parser",
        "Format of the model's reasoning, by vLLM's name. auto detects it from the model's files.",
        metavar="NAME",
    )
    reasoning_config: dict[str, Any] = setting(
        {},
        "--reasoning-config",
        "Tags for `thinking_token_budget`, in place of --reasoning-parser's: the count begins at "
        "`reasoning_start_str`, and after the budget, `reasoning_end_str` ends the reasoning.",
    )
    exclude_tools_when_tool_choice_none: bool = setting(
        False, "--exclude-tools-when-tool-choice-none", 'Leave tools out of the prompt when `tool_choice` is "none".'
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        self._check_parsers()
        self._check_reasoning_config()

    def _check_parsers(self) -> None:
        if self.enable_auto_tool_choice and self.tool_call_parser is None:
            raise ConfigError("--enable-auto-tool-choice", True, "used with --tool-call-parser")
        for flag, name, known in (
            ("--tool-call-parser", self.tool_call_parser, TOOL_FORMATS),
            ("--reasoning-parser", self.reasoning_parser, REASONING_FORMATS),
        ):
            if name is not None and name not in (AUTO, *known):
                raise ConfigError(flag, name, f"one of {', '.join((AUTO, *known))} (others need --engine vllm)")

    def _check_reasoning_config(self) -> None:
        if not self.reasoning_config:
            return
        known = {"reasoning_parser", "reasoning_start_str", "reasoning_end_str"}
        if not self.reasoning_config.keys() <= known or not all(
            isinstance(value, str) for value in self.reasoning_config.values()
        ):
            raise ConfigError("--reasoning-config", self.reasoning_config, f"an object of texts named {sorted(known)}")
        if self.reasoning_parser is None:
            raise ConfigError("--reasoning-config", self.reasoning_config, "used with --reasoning-parser")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings of the HTTP server."""

    help_group: ClassVar[Group] = "HTTP server"

    generation: GenerationConfig = field(default_factory=GenerationConfig)
    model: str | None = setting(None, filled_by="--model")
    """The model as named by the operator, which is `root` in /v1/models."""
    served_model_names: tuple[str, ...] = field(
        metadata=Setting(
            flag="--served-model-name",
            group="Model",
            after="--model",
            metavar="NAME...",
            help="Names that requests may use, by default MODEL. Responses contain the first.",
        )
    )
    server_dev_mode: bool = from_variable(env.VLLM_SERVER_DEV_MODE)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    enable_request_id_headers: bool = setting(
        False, "--enable-request-id-headers", "Send an X-Request-Id header with every response.", role="both"
    )
    timeout_keep_alive_s: int = from_variable(env.VLLM_HTTP_TIMEOUT_KEEP_ALIVE)
    lifecycle: LifecycleConfig = field(default_factory=LifecycleConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
