"""Limits of one client, one request and all requests together; standard library only."""

from dataclasses import dataclass, fields
from functools import cache

from envs.registry import env
from server.setting import check_ranges, from_variable, option_name, setting


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """The defaults suit a machine with a few gigabytes of memory."""

    max_queued_requests: int | None = setting(
        4096,
        flag="--max-num-queued-reqs",
        group="Limits",
        syntax="count",
        minimum=0,
        help="Most requests that wait or run; n and several prompts count. More get 503 and Retry-After.",
    )
    max_queued_tokens: int | None = setting(
        None,
        flag="--max-num-queued-tokens",
        group="Limits",
        syntax="count",
        minimum=0,
        help="Most prompt tokens that wait for their first token; then 503 and Retry-After. Unbounded if not given.",
    )
    max_head_bytes: int = setting(
        65_536,
        flag="--h11-max-incomplete-event-size",
        group="Limits",
        syntax="size",
        minimum=1,
        help="Largest request line and headers together; else 431.",
    )
    """Also the most that trailers and the framing of a chunked body may add."""
    max_headers: int = setting(
        256,
        flag="--h11-max-header-count",
        group="Limits",
        syntax="count",
        minimum=1,
        help="Most headers of a request; else 431.",
    )
    max_connections: int = setting(
        16_384,
        flag="--http-max-connections",
        group="Limits",
        syntax="count",
        minimum=1,
        help="Most connections, as far as the process may open files; then idle ones are closed, else 503.",
    )
    max_body_bytes: int = setting(
        32 << 20,
        flag="--http-max-body-size",
        group="Limits",
        syntax="size",
        minimum=1,
        help="Largest body without prompt_embeds; else 413.",
    )
    """What `prompt_embeds` may take in addition follows from the model."""
    max_held_bytes: int | None = setting(
        None,
        flag="--http-max-held-size",
        group="Limits",
        syntax="size",
        minimum=1,
        help="Most bytes of bodies and tensors in all requests; then 503. An eighth of free memory if not given.",
    )
    header_timeout_s: float = setting(
        20.0,
        flag="--http-header-timeout",
        group="Limits",
        above=0,
        help="Time for a request's headers, then 408; also for a TLS handshake.",
    )
    """From a request's first byte, or a new connection, to the end of its headers."""
    body_timeout_s: float = setting(
        30.0,
        flag="--http-body-timeout",
        group="Limits",
        above=0,
        help="Time for a body, extended as --http-min-body-rate says; then 408.",
    )
    min_body_rate: int = setting(
        4096,
        flag="--http-min-body-rate",
        group="Limits",
        syntax="size",
        minimum=0,
        help="Bytes of a body that extend its time by one second; 0 never extends it.",
    )
    """Bytes per second."""
    send_timeout_s: float = setting(
        60.0,
        flag="--http-send-timeout",
        group="Limits",
        above=0,
        help="Time for a client to read buffered data; then the connection is closed.",
    )
    """How long the send buffer may stay full, or a finished response unread."""
    send_buffer_bytes: int = setting(
        65_536,
        flag="--http-send-buffer-size",
        group="Limits",
        syntax="size",
        minimum=1,
        help="Bytes buffered for a client that reads slowly, before its request waits.",
    )
    request_timeout_s: float = setting(
        3600.0,
        flag="--http-request-timeout",
        group="Limits",
        minimum=0,
        help="Time for a response; then 504. 0 is no limit.",
    )
    """From the end of the request's body to the end of its response."""
    max_json_depth: int = setting(
        128,
        flag="--http-max-json-depth",
        group="Limits",
        syntax="count",
        minimum=1,
        help="Deepest nesting of a body; else 400.",
    )
    max_json_values: int = setting(
        1_000_000,
        flag="--http-max-json-values",
        group="Limits",
        syntax="count",
        minimum=1,
        help="Most objects, lists, texts and numbers in a body, keys included; else 400.",
    )
    max_choices: int = from_variable(env.VLLM_MAX_N_SEQUENCES, minimum=1)
    """`n` and `best_of`."""
    max_prompts: int = from_variable(
        env.VLLM_MAX_COMPLETION_PROMPTS,
        flag="--http-max-prompts",
        group="Limits",
        syntax="count",
        minimum=1,
        help="Most prompts of a request, times n; also inputs and documents.",
    )
    max_messages: int = setting(
        2048,
        flag="--http-max-messages",
        group="Limits",
        syntax="count",
        minimum=1,
        help="Most messages of a conversation; else 400.",
    )
    max_tools: int = setting(
        256,
        flag="--http-max-tools",
        group="Limits",
        syntax="count",
        minimum=1,
        help="Most tools of a request; else 400.",
    )
    max_stop_strings: int = from_variable(
        env.VLLM_MAX_STOP_STRINGS,
        flag="--http-max-stop-strings",
        group="Limits",
        syntax="count",
        minimum=1,
        help="Most stop strings of a request; else 400.",
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@cache
def flag_of(field: str) -> str:
    """The flag or variable that sets a limit, as messages name it."""
    return next(option_name(declared) for declared in fields(LimitsConfig) if declared.name == field)
