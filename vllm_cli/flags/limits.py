"""The flags of `serve` that bound what clients and requests may take."""

from typing import Final

import click

from vllm_cli.flags.byte_size import ByteSize
from vllm_cli.flags.flag import HonouredFlag
from vllm_cli.flags.param_types import HumanInt


def _count(name: str, field: str, help: str) -> HonouredFlag:
    return HonouredFlag(name, fields=(f"limits.{field}",), type=HumanInt(), help=help)


def _size(name: str, field: str, help: str) -> HonouredFlag:
    return HonouredFlag(name, fields=(f"limits.{field}",), type=ByteSize(), metavar="SIZE", help=help)


def _seconds(name: str, field: str, help: str) -> HonouredFlag:
    return HonouredFlag(name, fields=(f"limits.{field}",), type=click.FLOAT, metavar="SECONDS", help=help)


_OF_VLLM = (
    _count(
        "--max-num-queued-reqs",
        "max_queued_requests",
        "Most requests that wait or run; n and several prompts count. More get 503 and Retry-After.",
    ),
    _count(
        "--max-num-queued-tokens",
        "max_queued_tokens",
        "Most tokens of prompts that wait for their first token; then 503 and Retry-After. Unbounded if not given.",
    ),
    _size("--h11-max-incomplete-event-size", "max_head_bytes", "Largest request line and headers together; else 431."),
    _count("--h11-max-header-count", "max_headers", "Most headers of a request; else 431."),
)

OWN_LIMITS: Final = (
    _count(
        "--http-max-connections",
        "max_connections",
        "Most connections, as far as the process may open files; then idle ones are closed, and if there are none 503.",
    ),
    _size("--http-max-body-size", "max_body_bytes", "Largest body, what prompt_embeds take aside; else 413."),
    _size(
        "--http-max-held-size",
        "max_held_bytes",
        "Most bytes of bodies and tensors in all requests; then 503. An eighth of free memory if not given.",
    ),
    _seconds(
        "--http-header-timeout", "header_timeout_s", "Time for a request's headers, then 408; also for a TLS handshake."
    ),
    _seconds("--http-body-timeout", "body_timeout_s", "Time for a body, and what the next flag gives back; then 408."),
    _size(
        "--http-min-body-rate", "min_body_rate", "Bytes of a body that give it a second of its time back; 0 for none."
    ),
    _seconds("--http-send-timeout", "send_timeout_s", "Time for a client to read what waits for it; then it is cut."),
    _size("--http-send-buffer-size", "send_buffer_bytes", "What may wait for a client that reads slowly."),
    _seconds("--http-request-timeout", "request_timeout_s", "Time for an answer; then 504. 0 does not bound it."),
    _count("--http-max-json-depth", "max_json_depth", "Deepest nesting of a body; else 400."),
    _count("--http-max-json-values", "max_json_values", "Most objects, lists, texts and numbers in a body; else 400."),
    _count("--http-max-prompts", "max_prompts", "Most prompts of a request, times n; also inputs and documents."),
    _count("--http-max-messages", "max_messages", "Most messages of a conversation; else 400."),
    _count("--http-max-tools", "max_tools", "Most tools of a request; else 400."),
    _count("--http-max-stop-strings", "max_stop_strings", "Most stop strings of a request; else 400."),
)
"""Flags of our own, under a prefix that vLLM does not use."""

LIMITS: Final = (*_OF_VLLM, *OWN_LIMITS)
