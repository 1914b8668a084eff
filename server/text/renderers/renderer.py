"""Turns conversations and other prompts into token ids, and tokens back into text.

Conversations are written by the operator's or the model's chat template. Thread pools run work that blocks.
"""

import asyncio
import inspect
from collections.abc import Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Self

import jinja2
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from base.errors import RequestError
from server.terms.bounded_cache import BoundedCache
from server.terms.concurrency import run_concurrently
from server.terms.config import ModelFiles, RendererConfig
from server.terms.types import EngineInfo
from server.text.model_files import TokenizerLoadError, accepts_images, foreign_problem
from server.text.renderers.conversation import (
    ContentFormat,
    Message,
    has_few_parts,
    to_conversation,
    without_developer,
)
from server.text.renderers.detokenizer import (
    UNFINISHED,
    DecodeWindow,
    IncrementalDetokenizer,
    PromptTail,
    StopScanner,
    complete_character,
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
from server.text.renderers.tokenizers.loading import load_tokenizer
from server.text.renderers.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from server.text.renderers.images.vision import VisionPart

_RESERVED = {
    "messages",
    *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    *inspect.signature(render_jinja_template).parameters,
}
"""Names that `chat_template_kwargs` may not set."""
_TEXT, _OTHER_FIELD = "zq-text", "zq-field"
"""Contents of a test message. The rendered message shows the form of contents that a template expects."""


class Renderer:
    """Renders conversations. `prompts` renders all other prompts. `pools` runs work that blocks.

    Create a renderer on the main thread, because loading the tokenizer may import torch. Each conversation is
    rendered in one call in a pool. `create_detokenizer`, `token_text` and the properties are cheap, so they
    run on the event loop.
    """

    vision: "VisionPart | None" = None
    """Processes images. None if the model accepts no images."""

    def __init__(self, files: ModelFiles, config: RendererConfig, *, executor: Executor | None = None) -> None:
        """`executor` replaces the renderer's pools. The caller closes `executor`.

        Raises:
            TokenizerLoadError: the tokenizer or the operator's chat template is missing or broken.
        """
        if problem := foreign_problem(files.tokenizer_path, config.tokenizer_mode):
            raise TokenizerLoadError(problem)
        self.files = files
        self.config = config
        self.pools = RendererPools(config.num_workers, executor)
        self._mm_executor = self.pools.images
        self._loaded = load_tokenizer(files.tokenizer_path, config.trust_remote_code)
        if config.max_images and accepts_images(files.path):
            from server.text.renderers.images.vision import VisionPart  # noqa: PLC0415 - most models take no images

            self.vision = VisionPart(files, config, self._loaded, self._mm_executor)
            self._loaded.chat_template = self._loaded.chat_template or self.vision.chat_template
        self.tokenizer = Tokenizer(self._loaded)
        """All threads share this object."""
        self.prompts = PlainPrompts(self.tokenizer)
        if config.chat_template is not None:
            try:
                _compile_jinja_template(config.chat_template)  # a mistake fails the start, not every request
            except jinja2.TemplateSyntaxError as err:
                fault = f"line {err.lineno}: {err.message}"
                raise TokenizerLoadError(f"--chat-template is not a Jinja template: {fault}") from err

    def render_messages(
        self, messages: list[dict[str, Any]], options: ChatOptions, images: ProcessedImages | None = None
    ) -> str:
        """Turns a conversation in OpenAI's form into text, with the tokens of its images.

        Raises:
            RequestError: the messages or options are invalid, or the template failed.
        """
        template = resolve_chat_template(self._loaded, self.config.chat_template, options.tools or None)
        wanted = self.config.chat_template_content_format
        content_format = detect_content_format(self._loaded, template) if wanted == "auto" else wanted
        text = safe_apply_chat_template(
            self._loaded,
            to_conversation(messages, content_format, self.image_token),
            template=template,
            options=options,
            template_kwargs=self.config.default_chat_template_kwargs | options.chat_template_kwargs,
        )
        return text if images is None or self.vision is None else self.vision.expand(text, images)

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
        text = self.render_messages(messages, options, images)
        if self.vision is not None:  # as the image processors of transformers do
            bos = self._loaded.bos_token
            has_bos = bos is not None and text.startswith(bos)
            options = replace(options, add_special_tokens=options.add_special_tokens or not has_bos)
        prompt = self.prompts.tokenize(text, options, param="messages")
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

    def token_text(self, token_id: int, before: Sequence[int] | None = None) -> str:
        """Returns the text of one token, for log-probabilities.

        An incomplete character at the token's end becomes U+FFFD. With the tokens `before` it, the text is
        empty instead, and the token that completes the character has the whole character.
        """
        text = self.tokenizer.token_bytes(token_id).decode(errors="replace")
        if before is None or not text.endswith(UNFINISHED):
            return text
        return complete_character(self.tokenizer.loop_decoder(skip_special_tokens=False), token_id, before)

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
        own = self._loaded.chat_template
        return self.config.chat_template or (own.get("default") if isinstance(own, dict) else own)

    @property
    def tool_template(self) -> str | None:
        """The template for conversations with tools. None if the model has no such template."""
        own = self._loaded.chat_template
        named = own.get("tool_use") if isinstance(own, dict) else None
        return self.config.chat_template or named or self.chat_template

    @property
    def image_token(self) -> str | None:
        """The text that stands for an image in a prompt. None if the model accepts no images."""
        return None if self.vision is None else self.vision.image_token

    @property
    def mm_cache(self) -> BoundedCache[Hashable, ProcessedImages] | None:
        """The cache of processed images. None if the model accepts no images."""
        return None if self.vision is None else self.vision.cache

    async def clear_mm_cache_async(self) -> None:
        """Drops all processed images, in the image thread, the only thread that uses the cache."""
        if self.mm_cache is not None:
            await asyncio.get_running_loop().run_in_executor(self._mm_executor, self.mm_cache.clear)

    def configure(self, info: EngineInfo) -> None:
        """Sets the limits that the engine reports after it has loaded the model."""
        self.prompts.max_model_len = info.max_model_len
        if info.embeds_width is not None:
            self.prompts.embeds_limits = EmbedsLimits(info.max_model_len, info.embeds_width, info.dtype)

    def warm_up(self) -> None:
        """Does in advance what would delay the first requests. May hold the GIL for 0.1 s."""
        if self.vision is not None:
            self.vision.warm_up()
        if self.chat_template is not None:
            detect_content_format(self._loaded, self.chat_template)

    def close(self) -> None:
        self.pools.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def resolve_chat_template(
    tokenizer: PreTrainedTokenizerBase, given: str | None, tools: list[dict[str, Any]] | None
) -> str:
    """Returns the template `given`, or else the tokenizer's own template for these tools.

    `given` may be the name of one of the tokenizer's own templates.

    Raises:
        RequestError: there is no template.
    """
    try:
        template: str = tokenizer.get_chat_template(given, tools)
    except ValueError as err:
        raise RequestError(
            "this model has no chat template: use /v1/completions, or start the server with --chat-template",
            param="messages",
        ) from err
    return template


def safe_apply_chat_template(
    tokenizer: PreTrainedTokenizerBase,
    conversation: list[Message],
    *,
    template: str,
    options: ChatOptions,
    template_kwargs: dict[str, Any],
) -> str:
    """Renders the prompt's text in Jinja's sandbox.

    Raises:
        RequestError: a template variable has a reserved name, or the template failed or rejected the
            conversation.
    """
    if reserved := sorted(_RESERVED & template_kwargs.keys()):
        raise RequestError(f"chat_template_kwargs may not set {', '.join(reserved)}", param="chat_template_kwargs")
    if not any(quoted in template for quoted in ("'developer'", '"developer"')):
        conversation = without_developer(conversation)
    try:
        text: str = tokenizer.apply_chat_template(
            conversation,
            tools=options.tools or None,
            documents=options.documents,
            chat_template=template,
            add_generation_prompt=options.add_generation_prompt,
            continue_final_message=options.continue_final_message,
            tokenize=False,
            **template_kwargs,
        )
    except Exception as err:  # a template may raise any kind of error
        raise RequestError(f"the chat template failed: {_describe(err)}", param="messages") from err
    return text


def _describe(err: Exception) -> str:
    """Returns the message of an error that the template raised itself. For other errors, adds the type."""
    return str(err) if isinstance(err, jinja2.TemplateError) and str(err) else f"{type(err).__name__}: {err}"


@lru_cache(maxsize=32)
def detect_content_format(tokenizer: PreTrainedTokenizerBase, template: str) -> ContentFormat:
    """Returns `openai` if the template writes the texts of a user message's parts, otherwise `string`.

    vLLM looks for a loop over a message's content instead. The result is the same for models' templates.
    """
    part = {"type": "text", "text": _TEXT, _OTHER_FIELD: ""}
    user: Message = {"role": "user", "content": [part]}
    others: list[Message] = [{"role": "assistant", "content": "a"}, user]
    for conversation in ([user], [user, *others], [{"role": "system", "content": "a"}, user]):
        try:
            text = safe_apply_chat_template(
                tokenizer, conversation, template=template, options=ChatOptions(), template_kwargs={}
            )
        except RequestError:
            continue
        if _TEXT in text and _OTHER_FIELD not in text:  # a template without a loop may write the list itself
            return "openai"
    return "string"
