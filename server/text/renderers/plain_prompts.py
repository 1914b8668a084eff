"""Renders prompts that are texts, token ids or embeddings, and checks their length."""

from collections.abc import Collection, Sequence
from typing import Final

from base.errors import RequestError
from server.terms.types import PromptInputs
from server.text.renderers.embeds.prompt_embeds import EmbedsLimits, safe_load_prompt_embeds
from server.text.renderers.prompts import ChatOptions, EmbedsPrompt, Prompt, RenderedPrompt, TextOptions
from server.text.renderers.tokenizers.tokenizer import Cut, Tokenizer

_PROMPTS_PER_CALL: Final = 32


class PlainPrompts:
    """Renders plain prompts, on any thread."""

    max_model_len: int | None = None
    """The most tokens of a prompt and its output together. None until the engine has loaded the model."""
    embeds_limits: EmbedsLimits | None = None
    """The shape and type for `prompt_embeds`. None if the server accepts no embeddings."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def render_all(self, prompts: Sequence[Prompt], options: TextOptions) -> list[RenderedPrompt]:
        """Renders prompts one by one. Raises the errors of `render`, and ValueError if there is no prompt."""
        _check_prompts(prompts)
        return [self.render(prompt, options) for prompt in prompts]

    def render(self, prompt: Prompt, options: TextOptions) -> RenderedPrompt:
        """Tokenizes a plain text, checks token ids against the vocabulary, or loads embeddings.

        Raises:
            RequestError: the prompt is empty, too long, or holds an id outside the vocabulary.
        """
        if isinstance(prompt, EmbedsPrompt):
            return self._load_embeds(prompt, options)
        if isinstance(prompt, str):
            return self.tokenize(prompt, options, param="prompt")
        check_token_ids(prompt, vocab_size=self._tokenizer.vocab_size, param="prompt")
        return RenderedPrompt(self.keep_tokens(prompt, options, param="prompt"), text=None)

    def _load_embeds(self, prompt: EmbedsPrompt, options: TextOptions) -> RenderedPrompt:
        if self.embeds_limits is None:
            raise RequestError(
                "`prompt_embeds` are only accepted when the server runs with --enable-prompt-embeds",
                param="prompt_embeds",
            )
        rows = safe_load_prompt_embeds(prompt.embeds, self.embeds_limits, truncate_to=self.token_limit(options))
        return RenderedPrompt([0] * rows.shape[0], text=None, inputs=PromptInputs(embeds=rows))

    def tokenize(self, text: str, options: ChatOptions | TextOptions, *, param: str) -> RenderedPrompt:
        """Tokenizes a text, or the text of a conversation. Raises the same RequestErrors as `render`."""
        limit = self.token_limit(options)
        if limit is None:
            self.check_length(text)
        check_unicode(text, param)
        token_ids = self._tokenizer.encode(text, add_special_tokens=options.add_special_tokens, limit=limit)
        return RenderedPrompt(self.keep_tokens(token_ids, options, param=param), text)

    def keep_tokens(self, token_ids: list[int], options: ChatOptions | TextOptions, *, param: str) -> list[int]:
        """Truncates a prompt. Raises RequestError if no token remains."""
        limit = self.token_limit(options)
        kept = token_ids if limit is None else Cut(limit, "left").apply(token_ids)
        if not kept:
            raise RequestError(f"{param} has no tokens", param=param)
        return kept

    def token_limit(self, options: ChatOptions | TextOptions) -> int | None:
        """Returns how many prompt tokens to keep, or None to keep all of them.

        A request's -1 keeps as many tokens as leave room for one output token.
        """
        asked, most = options.truncate_prompt_tokens, self.max_model_len
        if asked is None or most is None:
            return None if asked == -1 else asked
        if asked > most:
            raise RequestError(
                f"truncate_prompt_tokens must be at most the model's {most} tokens, got {asked}",
                param="truncate_prompt_tokens",
            )
        return asked if asked >= 0 else most - 1

    def check_length(self, text: str) -> None:
        """Raises RequestError for a text that cannot fit into the model's context."""
        if (most := self.max_model_len) is not None:
            check_text_length(text, max_model_len=most, max_token_chars=self._tokenizer.max_token_chars)


def split_prompts(prompts: Sequence[Prompt]) -> list[Sequence[Prompt]]:
    """Divides prompts among calls in the pool. Raises ValueError if there are no prompts.

    Several texts share a call. Embeddings are large, so each prompt of embeddings has its own call.
    """
    _check_prompts(prompts)
    size = 1 if isinstance(prompts[0], EmbedsPrompt) else _PROMPTS_PER_CALL
    return [prompts[begin : begin + size] for begin in range(0, len(prompts), size)]


def _check_prompts(prompts: Sequence[Prompt]) -> None:
    if not prompts:
        raise ValueError("You must pass at least one prompt")


def check_text_length(text: str, *, max_model_len: int, max_token_chars: int) -> None:
    """Raises RequestError for a text that is too long in any tokenization.

    Without this check, a thread might spend seconds on tokenizing the text.
    """
    if len(text) > (most_chars := max_model_len * max_token_chars):
        raise RequestError(
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains {len(text)} "
            f"characters (more than {most_chars} characters, which is the upper bound for {max_model_len} input "
            f"tokens). Please reduce the length of the input prompt. (parameter=input_text, value={len(text)})",
            param="input_text",
        )


def check_unicode(text: str, param: str) -> None:
    """Raises RequestError for half of a surrogate pair, which JSON can express but UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise RequestError(f"{param} is not valid Unicode: it holds a lone surrogate", param=param) from err


def check_token_ids(token_ids: Collection[int], *, vocab_size: int, param: str) -> None:
    """Raises RequestError if an id is outside the vocabulary."""
    bad = next((token_id for token_id in token_ids if not 0 <= token_id < vocab_size), None)
    if bad is not None:
        raise RequestError(f"Token id {bad} is out of vocabulary range [0, {vocab_size}) (`{param}`).", param=param)
