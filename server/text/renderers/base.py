"""The base of all renderers, which turn text into token ids and back. Thread pools run work that blocks.

This module imports no library of tokenizers.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from concurrent.futures import Executor
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from base.errors import RequestError
from server.terms.bounded_cache import BoundedCache
from server.terms.concurrency import run_concurrently
from server.terms.config import ModelFiles, RendererConfig
from server.terms.types import EngineInfo
from server.text.model_files.model_kind import accepts_images
from server.text.model_files.tokenizer_files import TokenizerLoadError, foreign_problem
from server.text.renderers.conversation import has_few_parts
from server.text.renderers.detokenizer import (
    DecodeWindow,
    IncrementalDetokenizer,
    PromptTail,
    StopScanner,
    decode_in_pieces,
)
from server.text.renderers.pools import RendererPools
from server.text.renderers.prompt_embeds import EmbedsLimits
from server.text.renderers.prompts import (
    ChatOptions,
    HeldBytes,
    PlainPrompts,
    ProcessedImages,
    Prompt,
    RenderedPrompt,
    TextOptions,
    check_token_ids,
    split_prompts,
)
from server.text.renderers.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from server.text.renderers.images.vision import VisionPart


class BaseRenderer(ABC):
    """Renders conversations. `prompts` renders all other prompts. `pools` runs work that blocks.

    Create a renderer on the main thread, because loading the tokenizer may import torch. Each conversation is
    rendered in one call in a pool. `create_detokenizer`, `token_text` and the properties are cheap, so they
    run on the event loop.
    """

    tokenizer: Tokenizer
    """The tokenizer that `_load` sets. All threads share this object."""
    vision: "VisionPart | None" = None
    """Processes images. None if the model accepts no images."""

    def __init__(self, files: ModelFiles, config: RendererConfig, *, executor: Executor | None = None) -> None:
        """See `build_renderer`."""
        self.files = files
        self.config = config
        self.pools = RendererPools(config.num_workers, executor)
        self._executor, self._mm_executor = self.pools.text, self.pools.images
        self._takes_images = bool(config.max_images and accepts_images(files.path))
        self._load()
        self.prompts = PlainPrompts(self.tokenizer)

    @abstractmethod
    def _load(self) -> None:
        """Loads the tokenizer and, for images, the vision part. May raise TokenizerLoadError."""

    def _load_vision(self, tokenizer: Any) -> "VisionPart":
        """Loads the part for images. `tokenizer` is transformers'."""
        kind: type[VisionPart] = import_module("server.text.renderers.images.vision").VisionPart
        return kind(self.files, self.config, tokenizer, self._mm_executor)

    @abstractmethod
    def render_messages(
        self, messages: list[dict[str, Any]], options: ChatOptions, images: ProcessedImages | None = None
    ) -> str:
        """Turns a conversation in OpenAI's form into text, with the tokens of its images.

        Raises:
            RequestError: the messages or options are invalid, or the template failed.
        """

    async def load_images(self, messages: list[dict[str, Any]], held: HeldBytes) -> ProcessedImages | None:
        """Loads the images of a conversation for `render_chat`. `held` counts the bytes of the image files.

        Raises:
            RequestError: an image cannot be loaded.
        """
        if self.vision is None:
            return None
        parts = await self.pools.run_unless(has_few_parts(messages), self.vision.find_images, messages)
        return await self.vision.load(parts, held, max_tokens=self.prompts.max_model_len) if parts else None

    def render_chat(
        self, messages: list[dict[str, Any]], options: ChatOptions, images: ProcessedImages | None = None
    ) -> RenderedPrompt:
        """Renders and tokenizes a conversation in OpenAI's form.

        Raises:
            RequestError: the messages or options are invalid, or the template failed.
        """
        if images is not None and options.truncate_prompt_tokens is not None:
            raise RequestError("truncate_prompt_tokens cannot be combined with images", param="truncate_prompt_tokens")
        prompt = self._tokenize_chat(self.render_messages(messages, options, images), options)
        return prompt if images is None or self.vision is None else self.vision.attach(prompt, images)

    async def render_prompts_async(self, prompts: Sequence[Prompt], options: TextOptions) -> list[RenderedPrompt]:
        """Renders all prompts of a request concurrently in the pool, so that nothing blocks the event loop.

        At most as many calls run at once as the pool has threads, so that calls of other requests can run in
        between.

        Raises:
            RequestError: a prompt is invalid. All calls that have not ended are cancelled.
        """
        turns = asyncio.Semaphore(self.config.num_workers)

        async def render(batch: Sequence[Prompt]) -> list[RenderedPrompt]:
            async with turns:
                return await self.pools.run(self.prompts.render_all, batch, options)

        rendered = await run_concurrently(map(render, split_prompts(prompts)))
        return [prompt for batch in rendered for prompt in batch]

    def detokenize(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        """Returns the text of a whole sequence. Raises RequestError for an id outside the vocabulary."""
        check_token_ids(token_ids, vocab_size=self.tokenizer.vocab_size, param="tokens")
        decode = partial(self.tokenizer.decode, skip_special_tokens=skip_special_tokens)
        return decode_in_pieces(decode, token_ids)

    def token_text(self, token_id: int) -> str:
        """Returns the text of one token, for log-probabilities. An incomplete character becomes U+FFFD."""
        return self.tokenizer.token_bytes(token_id).decode(errors="replace")

    def create_detokenizer(
        self,
        *,
        skip_special_tokens: bool = True,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
        prompt: PromptTail | None = None,
    ) -> IncrementalDetokenizer:
        """Creates the detokenizer of one output. Ignores stop strings in the first `min_tokens` tokens."""
        decode = self.tokenizer.loop_decoder(skip_special_tokens=skip_special_tokens)
        scanner = StopScanner(stop, include_stop_str_in_output) if stop else None
        return IncrementalDetokenizer(DecodeWindow(decode, prompt or PromptTail()), scanner, min_tokens)

    @property
    def chat_template(self) -> str | None:
        """The template for conversations without tools. None if the model has no such template."""
        return None

    @property
    def tool_template(self) -> str | None:
        """The template for conversations with tools. None if the model has no such template."""
        return self.chat_template

    @property
    def image_token(self) -> str | None:
        """The text that stands for an image in a prompt. None if the model accepts no images."""
        return None if self.vision is None else self.vision.image_token

    @property
    def mm_cache(self) -> BoundedCache[Hashable, ProcessedImages] | None:
        """The cache of processed images. None if the model accepts no images."""
        return None if self.vision is None else self.vision.cache

    def clear_mm_cache(self) -> None:
        """Drops all processed images. Runs in the image thread, the only thread that uses the cache."""
        if self.mm_cache is not None:
            self.mm_cache.clear()

    async def clear_mm_cache_async(self) -> None:
        """Drops all processed images. Waits until the image thread has finished its current image."""
        await asyncio.get_running_loop().run_in_executor(self._mm_executor, self.clear_mm_cache)

    def configure(self, info: EngineInfo) -> None:
        """Sets the limits that the engine reports after it has loaded the model."""
        self.prompts.max_model_len = info.max_model_len
        if info.embeds_width is not None:
            self.prompts.embeds_limits = EmbedsLimits(info.max_model_len, info.embeds_width, info.dtype)

    def warm_up(self) -> None:
        """Does in advance what would delay the first requests. May hold the GIL for 0.1 s."""
        if self.vision is not None:
            self.vision.warm_up()

    def close(self) -> None:
        self.pools.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tokenize_chat(self, text: str, options: ChatOptions) -> RenderedPrompt:
        return self.prompts.tokenize(text, options, param="messages")


def build_renderer(files: ModelFiles, config: RendererConfig, *, executor: Executor | None = None) -> BaseRenderer:
    """Builds the renderer for these files. Call this on the main thread, because it may import torch.

    `executor` replaces the renderer's pools. The caller closes `executor`.

    Raises:
        TokenizerLoadError: the tokenizer or the operator's chat template is missing or broken.
    """
    if problem := foreign_problem(files.tokenizer_path, config.tokenizer_mode):
        raise TokenizerLoadError(problem)
    return import_renderer()(files, config, executor=executor)


def import_renderer() -> type[BaseRenderer]:
    """Imports the renderer with its library of tokenizers."""
    found: type[BaseRenderer] = import_module("server.text.renderers.hf").HfRenderer
    return found
