"""The request to /v1/completions."""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from base.errors import RequestError
from server.generation.request import GenerationRequest
from server.terms.http_body.request_body import Counted, NumLogprobs, TokenCount, TokenId, Unsupported
from server.text.renderers.prompts import EmbedsPrompt, Prompt

DEFAULT_MAX_TOKENS = 16


class CompletionRequest(GenerationRequest, kw_only=True):
    """A prompt to continue, or a list of prompts. A prompt is a text, token ids or embeddings."""

    prompt: str | list[TokenId | str | list[TokenId]] | None = None
    prompt_embeds: str | list[str] | None = None
    max_tokens: Annotated[TokenCount, Meta(extra={"range": "at least 1, or 0 with `echo`"})] | None = DEFAULT_MAX_TOKENS
    echo: bool | None = False
    logprobs: NumLogprobs | bool | None = None
    """As in vLLM, false means 0 and true means 1. Chat requests have a boolean in this field."""
    add_special_tokens: bool = True
    suffix: Unsupported = None

    def __post_init__(self) -> None:
        super().__post_init__()
        has_embeds = self.prompt_embeds is not None and self.prompt_embeds != []
        if not self.prompt and not has_embeds:
            raise RequestError("Either prompt or prompt_embeds must be provided and non-empty.", param="prompt")
        if has_embeds and self.echo:
            raise RequestError("`echo` cannot be combined with `prompt_embeds`: they have no text.", param="echo")
        if has_embeds and self.prompt_logprobs is not None:
            raise RequestError(
                "`prompt_logprobs` is not compatible with `prompt_embeds`: they have no tokens.",
                param="prompt_logprobs",
            )
        if isinstance(self.prompt, list) and len({type(member) for member in self.prompt}) > 1:
            raise RequestError(
                "`prompt` must hold texts, or token ids, or lists of token ids, not a mix.", param="prompt"
            )

    @property
    def prompts(self) -> list[Prompt]:
        """At least one prompt, with embeddings first. If there are embeddings, an empty text is ignored."""
        embeds = self.prompt_embeds
        members = () if embeds is None else (embeds,) if isinstance(embeds, str) else embeds
        prompts: list[Prompt] = [EmbedsPrompt(member) for member in members]
        if isinstance(self.prompt, list) and self.prompt and not isinstance(self.prompt[0], int):
            return prompts + self.prompt  # type: ignore[operator]
        return [*prompts, self.prompt] if self.prompt else prompts  # type: ignore[list-item]

    @property
    def num_sequences(self) -> int:
        return len(self.prompts) * self.num_choices

    def counted(self) -> Iterator[Counted]:
        yield Counted("max_prompts", "prompt", len(self.prompts))
        yield Counted("max_choices", "n", self.num_sequences)
        yield from super().counted()

    @property
    def is_echo_only(self) -> bool:
        """Whether the prompt is only scored, and nothing is generated."""
        return bool(self.echo) and self.max_tokens == 0

    @property
    def output_limit(self) -> TokenCount | None:
        """The most tokens to generate, as requested. The engine generates at least one token."""
        if self.is_echo_only:
            return 1
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def output_limit_param(self) -> str:
        """The name of the field that set `output_limit`."""
        return "max_tokens"

    @property
    def num_logprobs(self) -> int | None:
        """The number of candidates to report for each generated token."""
        return None if self.logprobs is None else int(self.logprobs)

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The number of candidates to report for each token of the prompt."""
        if self.prompt_logprobs is None and self.echo:
            return self.num_logprobs
        return self.prompt_logprobs
