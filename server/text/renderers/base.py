"""What all renderers do: they turn text into token ids and back, with the blocking work in thread pools.

Imports no tokenizer's library: the kinds of renderers (`registry.py`) do.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, Self, TypeVar

from base.errors import RequestError
from server.terms.concurrency import run_concurrently
from server.terms.config import ModelFiles, RendererConfig
from server.terms.types import EngineInfo, PromptInputs
from server.text.renderers.conversation import has_few_parts
from server.text.renderers.detokenizer import (
    DecodeWindow,
    IncrementalDetokenizer,
    PromptTail,
    StopScanner,
    decode_in_pieces,
)
from server.text.renderers.embeds.prompt_embeds import EmbedsLimits, safe_load_prompt_embeds
from server.text.renderers.images.processor_cache import ProcessedImages, ProcessorCache
from server.text.renderers.prompts import ChatOptions, EmbedsPrompt, HeldBytes, Prompt, RenderedPrompt, TextOptions
from server.text.renderers.tokenizers.tokenizer import Cut, Tokenizer

if TYPE_CHECKING:
    from server.text.renderers.images.vision import VisionPart

P = ParamSpec("P")
R = TypeVar("R")
LoadVision = Callable[[ModelFiles, RendererConfig, Any, Executor], "VisionPart"]
"""`VisionPart`, for a model with images: a renderer gives it its tokenizer as transformers has it."""

_PROMPTS_PER_CALL = 32


class RendererPool(ThreadPoolExecutor):
    """A thread pool that reports how many work items wait, and how long each one waited."""

    def __init__(self, num_workers: int, *, name: str) -> None:
        super().__init__(num_workers, thread_name_prefix=name)
        self.num_workers = num_workers
        self._on_wait: Callable[[float], None] = lambda _: None

    @property
    def num_waiting(self) -> int:
        """Work items that no thread has taken."""
        return self._work_queue.qsize()

    def subscribe_waits(self, on_wait: Callable[[float], None]) -> None:
        """Calls `on_wait` with the seconds that a work item has waited, on the thread that begins it."""
        self._on_wait = on_wait

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> "Future[R]":
        submitted_s = perf_counter()

        def run() -> R:
            self._on_wait(perf_counter() - submitted_s)
            return fn(*args, **kwargs)

        return super().submit(run)


class BaseRenderer(ABC):
    """Owns the pool (`--renderer-num-workers`) that runs templates, the tokenizer and decoding.

    Build it on the main thread: loading the tokenizer may import torch.

    Images are processed in a separate single thread, `_mm_executor`. So the image processor and its cache are
    never used by two threads at once, and text does not queue behind images.

    A prompt is rendered in the pool, in one call per request (`run_in_pool`). `create_detokenizer`,
    `token_text`, `token_bytes` and the properties are cheap and run on the loop itself.
    """

    has_own_tool_format: ClassVar[bool] = False
    """Whether the model's library, and no template, writes the tools and calls of a conversation."""
    tokenizer: Tokenizer
    """Loaded by the kind of renderer; all threads share it."""
    vision: "VisionPart | None" = None
    """Processes images; None if the model accepts none."""
    max_model_len: int | None = None
    """Most tokens of a prompt and its output; set by `configure`."""
    embeds_limits: EmbedsLimits | None = None
    """Shape and type that `prompt_embeds` must have; set by `configure` if the server accepts them."""

    def __init__(
        self,
        files: ModelFiles,
        config: RendererConfig,
        *,
        executor: Executor | None = None,
        load_vision: LoadVision | None = None,
    ) -> None:
        """See `build_renderer`; `executor` replaces both pools, and the caller closes it.

        Raises:
            TokenizerLoadError: the tokenizer or the operator's chat template is missing or broken.
        """
        self.files = files
        self.config = config
        self.pools: dict[str, RendererPool] = {}
        """The pools that this renderer owns, by purpose: `text` and `mm`."""
        if executor is None:
            self.pools["text"] = RendererPool(config.num_workers, name="renderer")
            self.pools["mm"] = RendererPool(1, name="renderer-mm")
        self._executor = executor or self.pools["text"]
        self._mm_executor = executor or self.pools["mm"]
        self._load(load_vision)

    @abstractmethod
    def _load(self, load_vision: LoadVision | None) -> None:
        """Loads the tokenizer and, for images, the vision part; may raise TokenizerLoadError."""

    @abstractmethod
    def render_messages(
        self, messages: list[dict[str, Any]], options: ChatOptions, images: ProcessedImages | None = None
    ) -> str | list[int]:
        """Writes a conversation in OpenAI's form as text or as token ids, with the tokens of its images.

        Raises:
            RequestError: the messages or options are invalid, or the template failed.
        """

    def submit(self, func: Callable[..., object], *args: object) -> None:
        """Runs work in the pool whose result nobody needs."""
        self._executor.submit(func, *args)

    async def run_in_pool(self, func: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs work in the pool that would block the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(func, *args, **kwargs))

    async def run_unless(self, is_small: bool, func: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs work that grows with a body in the pool, unless the body is small."""
        return func(*args, **kwargs) if is_small else await self.run_in_pool(func, *args, **kwargs)

    async def load_images(self, messages: list[dict[str, Any]], held: HeldBytes) -> ProcessedImages | None:
        """The images of a conversation, for `render_chat`; `held` counts the bytes of their files.

        Raises:
            RequestError: an image cannot be loaded.
        """
        if self.vision is None:
            return None
        parts = await self.run_unless(has_few_parts(messages), self.vision.find_images, messages)
        return await self.vision.load(parts, held, max_tokens=self.max_model_len) if parts else None

    def render_chat(
        self, messages: list[dict[str, Any]], options: ChatOptions, images: ProcessedImages | None = None
    ) -> RenderedPrompt:
        """Renders and tokenizes a conversation in OpenAI's form.

        Raises:
            RequestError: the messages or options are invalid, or the template failed.
        """
        if images is not None and options.truncate_prompt_tokens is not None:
            raise RequestError("truncate_prompt_tokens cannot be combined with images", param="truncate_prompt_tokens")
        rendered = self.render_messages(messages, options, images)
        if isinstance(rendered, str):
            prompt = self._tokenize_chat(rendered, options)
        else:
            prompt = RenderedPrompt(self._keep_tokens(rendered, options, param="messages"), text=None)
        return prompt if images is None or self.vision is None else self.vision.attach(prompt, images)

    async def render_prompts_async(self, prompts: Sequence[Prompt], options: TextOptions) -> list[RenderedPrompt]:
        """Renders all prompts of a request concurrently, in the pool: nothing is decoded on the event loop.

        As many calls run at once as the pool has threads, so that other requests get their turn.

        Raises:
            ValueError: `prompts` is empty.
            RequestError: as `render_text`; the other calls are then cancelled.
        """
        turns = asyncio.Semaphore(self.config.num_workers)

        async def render(batch: Sequence[Prompt]) -> list[RenderedPrompt]:
            async with turns:
                return await self.run_in_pool(self.render_prompts, batch, options)

        rendered = await run_concurrently(map(render, split_prompts(prompts)))
        return [prompt for batch in rendered for prompt in batch]

    def render_prompts(self, prompts: Sequence[Prompt], options: TextOptions) -> list[RenderedPrompt]:
        """Renders prompts in one call; blocks.

        Raises:
            ValueError: `prompts` is empty.
            RequestError: as `render_text`.
        """
        _check_prompts(prompts)
        return [
            self._load_embeds(prompt, options)
            if isinstance(prompt, EmbedsPrompt)
            else self.render_text(prompt, options)
            for prompt in prompts
        ]

    def render_text(self, prompt: str | list[int], options: TextOptions) -> RenderedPrompt:
        """Tokenizes a plain text, or checks token ids against the vocabulary.

        Raises:
            RequestError: the prompt is empty, too long, or holds an id outside the vocabulary.
        """
        if isinstance(prompt, str):
            return self._tokenized(prompt, options, param="prompt")
        check_token_ids(prompt, vocab_size=self.vocab_size, param="prompt")
        return RenderedPrompt(self._keep_tokens(prompt, options, param="prompt"), text=None)

    def detokenize(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of a whole sequence.

        Raises:
            RequestError: an id is outside the vocabulary.
        """
        check_token_ids(token_ids, vocab_size=self.vocab_size, param="tokens")
        decode = partial(self.tokenizer.decode, skip_special_tokens=skip_special_tokens)
        return decode_in_pieces(decode, token_ids)

    def token_text(self, token_id: int) -> str:
        """One token as text, for log-probabilities; an incomplete character becomes U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes that one token adds to a text."""
        return self.tokenizer.token_bytes(token_id)

    def create_detokenizer(
        self,
        *,
        skip_special_tokens: bool = True,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
        prompt: PromptTail | None = None,
    ) -> IncrementalDetokenizer:
        """Creates the detokenizer of one output; stop strings apply after `min_tokens` tokens."""
        decode = self.tokenizer.loop_decoder(skip_special_tokens=skip_special_tokens)
        scanner = StopScanner(stop, include_stop_str_in_output) if stop else None
        return IncrementalDetokenizer(DecodeWindow(decode, prompt or PromptTail()), scanner, min_tokens)

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        return self.tokenizer.vocab_size

    @property
    def chat_template(self) -> str | None:
        """The template for conversations without tools; None if there is none."""
        return None

    @property
    def tool_template(self) -> str | None:
        """The template for conversations with tools."""
        return self.chat_template

    @property
    def image_token(self) -> str | None:
        """The text that stands for an image in a prompt; None if the model accepts no images."""
        return None if self.vision is None else self.vision.image_token

    @property
    def mm_cache(self) -> ProcessorCache | None:
        """The processed images; None if the model accepts no images."""
        return None if self.vision is None else self.vision.cache

    def clear_mm_cache(self) -> None:
        """Drops all processed images; runs in the image thread, as everything that uses the cache."""
        if self.mm_cache is not None:
            self.mm_cache.clear()

    async def clear_mm_cache_async(self) -> None:
        """Drops all processed images, after the image that is being processed."""
        await asyncio.get_running_loop().run_in_executor(self._mm_executor, self.clear_mm_cache)

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's end-of-sequence token."""
        return self.tokenizer.eos_token_id

    def configure(self, info: EngineInfo) -> None:
        """Sets the limits that the engine reports once it has loaded the model."""
        self.max_model_len = info.max_model_len
        if info.embeds_width is not None:
            self.embeds_limits = EmbedsLimits(info.max_model_len, info.embeds_width, info.dtype)

    def warm_up(self) -> None:
        """Runs the one-time work that would delay the first requests; may hold the GIL for 0.1 s."""
        if self.vision is not None:
            self.vision.warm_up()

    def close(self) -> None:
        """Stops the pools and cancels the work that they have not begun."""
        for pool in self.pools.values():
            pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tokenize_chat(self, text: str, options: ChatOptions) -> RenderedPrompt:
        return self._tokenized(text, options, param="messages")

    def _load_embeds(self, prompt: EmbedsPrompt, options: TextOptions) -> RenderedPrompt:
        if self.embeds_limits is None:
            raise RequestError(
                "`prompt_embeds` are only accepted when the server runs with --enable-prompt-embeds",
                param="prompt_embeds",
            )
        rows = safe_load_prompt_embeds(prompt.embeds, self.embeds_limits, truncate_to=self._token_limit(options))
        return RenderedPrompt([0] * rows.shape[0], text=None, inputs=PromptInputs(embeds=rows))

    def _tokenized(self, text: str, options: ChatOptions | TextOptions, *, param: str) -> RenderedPrompt:
        limit = self._token_limit(options)
        if limit is None:
            self._check_length(text)
        check_unicode(text, param)
        token_ids = self.tokenizer.encode(text, add_special_tokens=options.add_special_tokens, limit=limit)
        return RenderedPrompt(self._keep_tokens(token_ids, options, param=param), text)

    def _keep_tokens(self, token_ids: list[int], options: ChatOptions | TextOptions, *, param: str) -> list[int]:
        """Truncates a prompt; raises RequestError if no token remains."""
        limit = self._token_limit(options)
        kept = token_ids if limit is None else Cut(limit, "left").apply(token_ids)
        if not kept:
            raise RequestError(f"{param} has no tokens", param=param)
        return kept

    def _token_limit(self, options: ChatOptions | TextOptions) -> int | None:
        """The number of prompt tokens to keep; None keeps all. -1 leaves room for one output token."""
        asked, most = options.truncate_prompt_tokens, self.max_model_len
        if asked is None or most is None:
            return None if asked == -1 else asked
        if asked > most:
            raise RequestError(
                f"truncate_prompt_tokens must be at most the model's {most} tokens, got {asked}",
                param="truncate_prompt_tokens",
            )
        return asked if asked >= 0 else most - 1

    def _check_length(self, text: str) -> None:
        if (most := self.max_model_len) is not None:
            check_text_length(text, max_model_len=most, max_token_chars=self.tokenizer.max_token_chars)


def split_prompts(prompts: Sequence[Prompt]) -> list[Sequence[Prompt]]:
    """The prompts of each call in the pool: embeddings, which are large, alone, and some texts together.

    Raises:
        ValueError: there are none.
    """
    _check_prompts(prompts)
    size = 1 if isinstance(prompts[0], EmbedsPrompt) else _PROMPTS_PER_CALL
    return [prompts[begin : begin + size] for begin in range(0, len(prompts), size)]


def _check_prompts(prompts: Sequence[Prompt]) -> None:
    if not prompts:
        raise ValueError("You must pass at least one prompt")


def check_text_length(text: str, *, max_model_len: int, max_token_chars: int) -> None:
    """Rejects a text that cannot fit with any tokenization, before a thread spends seconds on tokenizing it.

    Raises:
        RequestError: the text is too long.
    """
    if len(text) > (most_chars := max_model_len * max_token_chars):
        raise RequestError(
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains {len(text)} "
            f"characters (more than {most_chars} characters, which is the upper bound for {max_model_len} input "
            f"tokens). Please reduce the length of the input prompt. (parameter=input_text, value={len(text)})",
            param="input_text",
        )


def check_unicode(text: str, param: str) -> None:
    """Raises RequestError for half a surrogate pair, which JSON can express and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise RequestError(f"{param} is not valid Unicode: it holds a lone surrogate", param=param) from err


def check_token_ids(token_ids: Collection[int], *, vocab_size: int, param: str) -> None:
    """Raises RequestError if an id is outside the vocabulary."""
    bad = next((token_id for token_id in token_ids if not 0 <= token_id < vocab_size), None)
    if bad is not None:
        raise RequestError(f"Token id {bad} is out of vocabulary range [0, {vocab_size}) (`{param}`).", param=param)
