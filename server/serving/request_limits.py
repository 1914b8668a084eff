"""The limits of one decoded request; every rejection names limit, value and flag."""

from collections.abc import Iterator, Sequence
from typing import Any

from server.errors import RequestError
from server.limits import LimitsConfig, flag_of
from server.protocol.anthropic import CountTokensRequest, MessagesRequest
from server.protocol.chat import BatchChatRequest, ChatRequest
from server.protocol.cohere_embed import CohereEmbedRequest
from server.protocol.completions import CompletionRequest
from server.protocol.generation import GenerationRequest
from server.protocol.generative_scoring import GenerativeScoringRequest
from server.protocol.pooling import InputFields
from server.protocol.responses.request import ResponsesRequest
from server.protocol.scoring import RerankRequest, ScoreRequest
from server.protocol.tokenize import TokenizeRequest


def num_sequences(request: Any) -> int:
    """How many sequences the engine runs for a request; at least 1."""
    if isinstance(request, CompletionRequest):
        return len(request.prompts) * request.num_choices
    if isinstance(request, BatchChatRequest):
        return len(request.messages)
    if isinstance(request, GenerationRequest):
        return request.num_choices
    if isinstance(request, InputFields):
        return len(request.prompts) or len(request.conversations) or 1
    if isinstance(request, CohereEmbedRequest):
        return len(request.given)
    if isinstance(request, GenerativeScoringRequest):
        return len(request.items)
    if isinstance(request, ScoreRequest | RerankRequest):
        return len(request.first) + len(request.second)
    return 1


class RequestLimiter:
    """Checks requests of any kind; one per route, without state of its own."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits

    def check(self, request: Any) -> None:
        """Raises RequestError if the request exceeds a limit."""
        if isinstance(request, GenerationRequest):
            self._check_generation(request)
        if isinstance(request, MessagesRequest):
            self._check_count("stop_sequences", request.stop_sequences, "max_stop_strings")
        if isinstance(request, ChatRequest | TokenizeRequest | CountTokensRequest):
            self._check_count("messages", request.messages, "max_messages")
            self._check_count("tools", request.tools, "max_tools")
        elif isinstance(request, ResponsesRequest):
            self._check_count("input", request.items, "max_messages")
            self._check_count("tools", request.tools, "max_tools")
        elif isinstance(request, BatchChatRequest):
            self._check_conversations("messages", request.messages)
        elif isinstance(request, CompletionRequest):
            self._check_completion(request)
        elif isinstance(request, InputFields):
            self._check_inputs(request)
        for name, prompts in _other_prompts(request):
            self._check_count(name, prompts, "max_prompts")

    def _check_generation(self, request: GenerationRequest) -> None:
        if request.num_choices > self._limits.max_choices:
            most, flag = self._limits.max_choices, flag_of("max_choices")
            raise RequestError(f"`n` must be at most {most}, got {request.num_choices} ({flag}).", param="n")
        self._check_count("stop", request.stop_strings, "max_stop_strings")

    def _check_completion(self, request: CompletionRequest) -> None:
        prompts = request.prompts
        self._check_count("prompt", prompts, "max_prompts")
        most = self._limits.max_choices
        if len(prompts) * request.num_choices > most:
            raise RequestError(
                f"`prompt` and `n` may ask for at most {most} completions at once, "
                f"got {len(prompts)} prompts and n={request.num_choices} ({flag_of('max_choices')}).",
                param="n",
            )

    def _check_inputs(self, request: InputFields) -> None:
        name = "input" if request.messages is None else "messages"
        conversations = request.conversations
        if conversations:
            self._check_conversations(name, conversations)
        else:
            self._check_count(name, request.prompts, "max_prompts")

    def _check_conversations(self, name: str, conversations: list[Any]) -> None:
        self._check_count(name, conversations, "max_prompts")
        for messages in conversations:
            self._check_count(name, messages, "max_messages")

    def _check_count(self, name: str, members: Any, field: str) -> None:
        most = getattr(self._limits, field)
        if members is not None and len(members) > most:
            message = f"`{name}` may have at most {most} members, got {len(members)} ({flag_of(field)})."
            raise RequestError(message, param=name)


def _other_prompts(request: Any) -> Iterator[tuple[str, Sequence[Any]]]:
    """The fields with prompts of the requests that have no check of their own."""
    if isinstance(request, CohereEmbedRequest):
        yield "texts", request.given
    elif isinstance(request, GenerativeScoringRequest):
        yield "items", request.items
    elif isinstance(request, ScoreRequest | RerankRequest):
        yield from zip(request.names, (request.first, request.second), strict=True)
