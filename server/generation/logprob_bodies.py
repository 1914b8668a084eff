"""Log-probabilities in the responses of completions and chat completions."""

import msgspec


class CompletionLogprobs(msgspec.Struct):
    """`choices[].logprobs` of /v1/completions: parallel lists, one entry per token."""

    text_offset: list[int] = []
    token_logprobs: list[float | None] = []
    tokens: list[str] = []
    top_logprobs: list[dict[str, float] | None] = []


class ChatTopLogprob(msgspec.Struct):
    """One candidate token for a position."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(msgspec.Struct):
    """The token at one position and the most likely ones."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(msgspec.Struct):
    """`choices[].logprobs` of /v1/chat/completions."""

    content: list[ChatLogprob]


class PromptLogprob(msgspec.Struct):
    """One entry of vLLM's `prompt_logprobs`, which are keyed by token id."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


PromptLogprobs = list[dict[int, PromptLogprob] | None]
