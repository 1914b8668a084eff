"""Checks prompts against the model's context length and vocabulary, and truncates them."""

from collections.abc import Collection

from server.errors import RequestError


def resolve_token_limit(truncate_to: int | None, max_model_len: int | None) -> int | None:
    """The number of prompt tokens to keep; None keeps them all.

    Args:
        truncate_to: the request's `truncate_prompt_tokens`; -1 leaves room for one output token.
        max_model_len: most tokens of a prompt and its output, if known.

    Raises:
        RequestError: `truncate_to` is larger than the model's context.
    """
    if truncate_to is None or max_model_len is None:
        return truncate_to if truncate_to != -1 else None
    if truncate_to > max_model_len:
        raise RequestError(
            f"truncate_prompt_tokens must be at most the model's {max_model_len} tokens, got {truncate_to}",
            param="truncate_prompt_tokens",
        )
    return truncate_to if truncate_to >= 0 else max_model_len - 1


def check_text_length(text: str, *, max_model_len: int | None, max_token_chars: int, param: str) -> None:
    """Rejects a text that cannot fit with any tokenization, before a thread spends seconds on tokenizing it.

    Raises:
        RequestError: the text is too long.
    """
    if max_model_len is not None and len(text) > max_model_len * max_token_chars:
        raise RequestError(
            f"This model's maximum context length is {max_model_len} tokens (--max-model-len), but {param} holds "
            f"{len(text)} characters. Please reduce the length of the input prompt.",
            param=param,
        )


def check_token_ids(token_ids: Collection[int], *, vocab_size: int, param: str) -> None:
    """Raises RequestError if an id is outside the vocabulary."""
    if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab_size):
        bad = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise RequestError(f"Token id {bad} is out of vocabulary range [0, {vocab_size}) (`{param}`).", param=param)


def keep_tokens(token_ids: list[int], limit: int | None, side: str | None, *, param: str) -> list[int]:
    """The first `limit` tokens if they are cut on the `right` side, otherwise the last ones.

    Raises:
        RequestError: no token remains.
    """
    kept = token_ids
    if limit is not None:
        kept = token_ids[:limit] if side == "right" else token_ids[max(0, len(token_ids) - limit) :]
    if not kept:
        raise RequestError(f"{param} has no tokens", param=param)
    return kept
