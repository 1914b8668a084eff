"""What one client, one request and all requests together may take of the server; standard library only."""

from dataclasses import dataclass

from server.config import ConfigError

_FLAGS: dict[str, str] = {
    "max_connections": "--http-max-connections",
    "max_head_bytes": "--h11-max-incomplete-event-size",
    "max_headers": "--h11-max-header-count",
    "header_timeout_s": "--http-header-timeout",
    "body_timeout_s": "--http-body-timeout",
    "min_body_rate": "--http-min-body-rate",
    "send_buffer_bytes": "--http-send-buffer-size",
    "send_timeout_s": "--http-send-timeout",
    "max_body_bytes": "--http-max-body-size",
    "max_held_bytes": "--http-max-held-size",
    "request_timeout_s": "--http-request-timeout",
    "max_queued_requests": "--max-num-queued-reqs",
    "max_queued_tokens": "--max-num-queued-tokens",
    "max_json_depth": "--http-max-json-depth",
    "max_json_values": "--http-max-json-values",
    "max_choices": "VLLM_MAX_N_SEQUENCES",
    "max_prompts": "--http-max-prompts",
    "max_messages": "--http-max-messages",
    "max_tools": "--http-max-tools",
    "max_stop_strings": "--http-max-stop-strings",
}
"""Field -> what the operator sets it with."""

_MAY_BE_ZERO = frozenset({"request_timeout_s", "min_body_rate", "max_queued_requests", "max_queued_tokens"})


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """The defaults suit a machine with a few gigabytes; every one has a flag."""

    max_connections: int = 16_384
    """As far as the process may open so many files."""
    max_head_bytes: int = 65_536
    """Request line and headers; also what trailers and a chunked body's framing may add."""
    max_headers: int = 256
    header_timeout_s: float = 20.0
    """From a request's first byte, or a new connection, to the end of its headers; and for a handshake of TLS."""
    body_timeout_s: float = 30.0
    """For a body; each `min_body_rate` bytes that come give a second of it back."""
    min_body_rate: int = 4096
    """Bytes per second; 0 gives nothing back."""
    send_buffer_bytes: int = 65_536
    """What may wait for a client that reads slowly, before its request does."""
    send_timeout_s: float = 60.0
    """How long the buffer may stay full, or a finished answer unread."""

    max_body_bytes: int = 32 << 20
    """Beside what `prompt_embeds` may take, which follows from the model."""
    max_held_bytes: int | None = None
    """Bodies and tensors of all requests together; None takes an eighth of the memory that is free."""
    request_timeout_s: float = 3600.0
    """From the end of its body to the end of its answer; 0 does not bound it."""
    max_queued_requests: int | None = 4096
    """Requests that wait or run; one with n > 1, or several prompts, counts as so many."""
    max_queued_tokens: int | None = None
    """Tokens of prompts whose first token has not come."""

    max_json_depth: int = 128
    max_json_values: int = 1_000_000
    """Objects, lists, texts and numbers in a body, keys included."""
    max_choices: int = 128
    """`n` and `best_of`."""
    max_prompts: int = 2048
    """Prompts, inputs or documents of a request, times `n`."""
    max_messages: int = 2048
    max_tools: int = 256
    max_stop_strings: int = 64

    def __post_init__(self) -> None:
        for name, flag in _FLAGS.items():
            value, least = getattr(self, name), 0 if name in _MAY_BE_ZERO else 1
            if value is None:
                continue
            if name.endswith("_s") and least:
                if not value > 0:
                    raise ConfigError(flag, value, "above 0")
            elif value < least:
                raise ConfigError(flag, value, f"{least} or more")


def flag_of(field: str) -> str:
    """What sets a limit, as messages name it."""
    return _FLAGS[field]
