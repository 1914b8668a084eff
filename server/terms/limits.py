"""Limits for one client, one request, and all requests together. Imports no third-party package."""

from dataclasses import dataclass, fields
from functools import cache
from typing import ClassVar

from base.setting import Group, check_ranges, from_variable, option_name, setting
from envs.registry import env


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """Limits whose defaults suit a machine with a few gigabytes of memory."""

    help_group: ClassVar[Group] = "Limits"

    max_queued_requests: int | None = setting(
        4096,
        "--max-num-queued-reqs",
        "Most requests that wait or run. Each prompt counts `n` times. Further requests get 503 and Retry-After.",
        syntax="count",
        minimum=0,
    )
    max_queued_tokens: int | None = setting(
        None,
        "--max-num-queued-tokens",
        "Most prompt tokens of requests that wait for their first token, by default unlimited. Further requests get "
        "503 and Retry-After.",
        syntax="count",
        minimum=0,
    )
    max_head_bytes: int = setting(
        65_536,
        "--h11-max-incomplete-event-size",
        "Largest request line and headers together. Larger ones get 431.",
        syntax="size",
        minimum=1,
        role="both",
    )
    """Trailers and the framing of a chunked body have the same limit."""
    max_headers: int = setting(
        256,
        "--h11-max-header-count",
        "Most headers of a request. A request with more headers gets 431.",
        syntax="count",
        minimum=1,
        role="both",
    )
    max_connections: int = setting(
        16_384,
        "--http-max-connections",
        "Most connections, within the limit of open files. Above it, the server closes an idle connection, or "
        "answers a new one with 503.",
        syntax="count",
        minimum=1,
        role="port",
    )
    max_body_bytes: int = setting(
        32 << 20,
        "--http-max-body-size",
        "Largest body of a request without prompt_embeds. A larger body gets 413.",
        syntax="size",
        minimum=1,
        role="both",
    )
    """For requests with `prompt_embeds`, the limit is higher by the size that the model's limits allow."""
    max_held_bytes: int | None = setting(
        None,
        "--http-max-held-size",
        "Most bytes of bodies and tensors in all requests, by default an eighth of free memory. Further requests get "
        "503.",
        syntax="size",
        minimum=1,
        role="both",
    )
    header_timeout_s: float = setting(
        20.0,
        "--http-header-timeout",
        "Time in which a request's headers must arrive. Then the client gets 408. A TLS handshake may take as long.",
        above=0,
        role="port",
    )
    """The time from the first byte of a request, or from a new connection, to the end of the headers."""
    body_timeout_s: float = setting(
        30.0,
        "--http-body-timeout",
        "Time in which a body must arrive, and one second for each 4 KiB of it. Then the client gets 408.",
        above=0,
        role="port",
    )
    min_body_rate: ClassVar[int] = 4096
    """Bytes of a body that extend its time by one second."""
    send_timeout_s: float = setting(
        60.0,
        "--http-send-timeout",
        "Time in which a client must read buffered data. Then the connection closes.",
        above=0,
        role="both",
    )
    """How long the send buffer may stay full, or a complete response may stay unread."""
    send_buffer_bytes: ClassVar[int] = 65_536
    """Most bytes buffered for a slow client. While the buffer is full, the response waits for the client."""
    max_json_values: int = setting(
        1_000_000,
        "--http-max-json-values",
        "Most objects, lists, texts and numbers in a body. Above it, the request gets 400.",
        syntax="count",
        minimum=1,
    )
    max_choices: int = from_variable(env.VLLM_MAX_N_SEQUENCES, minimum=1)
    """Limits `n`, and the number of prompts times `n`."""
    max_prompts: int = from_variable(env.VLLM_MAX_COMPLETION_PROMPTS, minimum=1)
    """Limits the prompts, inputs or documents of a request."""
    max_stop_strings: int = from_variable(env.VLLM_MAX_STOP_STRINGS, minimum=1)

    def __post_init__(self) -> None:
        check_ranges(self)


@cache
def flag_of(field: str) -> str:
    """Returns the flag or variable that sets a limit, for error messages."""
    return next(option_name(declared) for declared in fields(LimitsConfig) if declared.name == field)
