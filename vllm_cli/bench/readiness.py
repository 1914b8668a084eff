"""Waits until a server answers completions. Finds its model and its version."""

import asyncio
from contextlib import closing, suppress
from dataclasses import dataclass
from time import monotonic_ns, perf_counter
from typing import Any, Final

from vllm_cli.bench.target import BenchConfig, Target, TargetStartError
from vllm_cli.client.server import ServerClient, amount, member
from vllm_cli.client.server_address import parse_url
from vllm_cli.errors import ConnectionFailedError
from vllm_cli.supervised_command import CommandEndedError

_POLL_S: Final = 0.1
_ANSWER_S: Final = 5.0

_PROMPT: Final = "The capital of France is"
_MAX_TOKENS: Final = 4


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """How a completion is requested from one server."""

    base_url: str
    path: str
    """`/v1/completions` or `/v1/chat/completions`."""
    model: str
    api_key: str | None

    @property
    def server(self) -> ServerClient:
        return ServerClient(parse_url(self.base_url), self.api_key)

    def find_first_text(self) -> int | None:
        """Sends a greedy request and reads its answer to the end. Without text, raises ConnectionFailedError.

        Returns when the first text arrived, on the monotonic clock. None for an empty answer. How the stream
        ends does not matter: `transformers serve` sends no `[DONE]`.
        """
        first_ns: int | None = None
        try:
            with closing(self.server.stream(self.path, self._body())) as pieces:
                for piece in pieces:
                    if first_ns is None and piece.text:
                        first_ns = monotonic_ns()
        except ConnectionFailedError:
            if first_ns is None:
                raise
        return first_ns

    def _body(self) -> dict[str, Any]:
        is_chat = self.path.endswith("/chat/completions")
        content = {"messages": [{"role": "user", "content": _PROMPT}]} if is_chat else {"prompt": _PROMPT}
        return {"model": self.model, "max_tokens": _MAX_TOKENS, "temperature": 0, **content}


@dataclass(frozen=True, kw_only=True)
class ReadyServer:
    """A server that has answered a completion."""

    request: CompletionRequest
    version: str | None
    """The server's answer to `/version`. None if the server has no such route."""


async def wait_until_ready(target: Target, config: BenchConfig) -> ReadyServer:
    """Requests a short completion until the server answers it."""
    start_s = perf_counter()
    while True:
        try:
            return await asyncio.to_thread(_ask, target, config)
        except ConnectionFailedError as error:
            raise_if_rejected(error)
            _raise_if_final(target, error, waited_s=perf_counter() - start_s, limit_s=config.ready_timeout_s)
        await asyncio.sleep(_POLL_S)


def ask_spans(request: CompletionRequest) -> dict[str, float]:
    """`process:span` -> its end in seconds, from `/startupz`. Empty if the server has no such route."""
    with suppress(ConnectionFailedError):
        report = request.server.ask("GET", "/startupz", timeout_s=_ANSWER_S)
        spans = [each for each in member(report, "spans", list) or () if isinstance(each, dict)]
        ends = {f"{each.get('process')}:{each.get('name')}": amount(each.get("end_s")) for each in spans}
        return {name: end_s for name, end_s in ends.items() if end_s is not None}
    return {}


def raise_if_rejected(error: ConnectionFailedError) -> None:
    """Raises TargetStartError if the server has rejected the request, so that a retry is useless."""
    if error.status is not None and error.status < 500:
        raise TargetStartError(f"{error.message} (--request-model and --api-key change the request)") from error


def _ask(target: Target, config: BenchConfig) -> ReadyServer:
    """Requests a completion, with the target's model or the first one that the server lists."""
    server = ServerClient(parse_url(target.base_url), config.api_key)
    request = CompletionRequest(
        base_url=target.base_url,
        path=config.path,
        model=target.spec.model or server.first_model(),
        api_key=config.api_key,
    )
    request.find_first_text()
    with suppress(ConnectionFailedError):
        answer = server.ask("GET", "/version", timeout_s=_ANSWER_S)
        return ReadyServer(request=request, version=member(answer, "version", str))
    return ReadyServer(request=request, version=None)


def _raise_if_final(target: Target, error: ConnectionFailedError, *, waited_s: float, limit_s: float) -> None:
    try:
        target.ensure_alive()
    except CommandEndedError as died:
        raise TargetStartError(died.message) from None
    if waited_s > limit_s:
        raise TargetStartError(f"{target.base_url} was not ready after {limit_s:g} s: {error.message}") from None
