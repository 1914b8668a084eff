"""Token counts of an answer."""

import msgspec


class PromptTokensDetails(msgspec.Struct):
    """How much of the prompt did not have to be computed."""

    cached_tokens: int


class Usage(msgspec.Struct, kw_only=True):
    """`usage` of completions and chat completions."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: None = None
