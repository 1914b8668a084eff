"""Renders for vision models: a Hugging Face processor in addition to the tokenizer."""

import asyncio
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from base.errors import RequestError
from base.machine.memory import available_bytes
from server.config import ModelFiles, RendererConfig
from server.renderers.chat_template import has_few_parts, is_image, parts_of
from server.renderers.images.fetcher import MediaError, TakeRoom
from server.renderers.images.loader import MediaLoader, room_for_images
from server.renderers.images.processor import ImageFile, ImageProcessor, import_decoders, load_processor
from server.renderers.images.processor_cache import ProcessedImages, ProcessorCache
from server.renderers.prompts import ChatOptions, HeldBytes, RenderedPrompt
from server.renderers.renderer import Renderer
from server.renderers.tokenizers.hf_tokenizer import HfTokenizer
from server.renderers.tokenizers.loading import load_tokenizer
from server.types import PromptInputs

_MEMORY_SHARE = 0.25
"""Most of the memory free at the start that the image cache may use."""
_NUM_LOADS = 8
"""Images of one prompt that are fetched concurrently."""


class ImagePart(NamedTuple):
    """An image in a conversation."""

    name: str
    """Its position, e.g. `messages[0].content[1]`."""
    url: str


class VisionRenderer(Renderer):
    """Renders the conversation's text in the text pool, and processes images in the image thread.

    The token ids equal those of `processor.apply_chat_template(..., tokenize=True)`.
    """

    def __init__(self, files: ModelFiles, config: RendererConfig, *, executor: Executor | None = None) -> None:
        loaded = load_tokenizer(files.tokenizer_path, config.trust_remote_code)
        processor = load_processor(files.path, loaded)
        if loaded.chat_template is None:
            loaded.chat_template = processor.chat_template
        super().__init__(files, config, executor=executor, tokenizer=HfTokenizer(loaded))
        cache = self.mm_cache = ProcessorCache(_cache_bytes(config))
        self._images = ImageProcessor(
            processor, cache, max_pixels=config.max_image_pixels, settings=config.mm_processor_kwargs
        )
        self._media = MediaLoader(config, self._mm_executor)
        self.image_token = self._images.image_token

    async def load_images(self, messages: list[dict[str, Any]], held: HeldBytes) -> ProcessedImages | None:
        parts = _image_parts(messages) if has_few_parts(messages) else await self.run_in_pool(_image_parts, messages)
        if not parts:
            return None
        self._check_num_images(parts)
        with room_for_images(held) as take_room:
            return await self._process(await self._load(parts, take_room))

    def warm_up(self) -> None:
        """Processes an image, so that the image thread imports nothing for the first request."""
        super().warm_up()
        import_decoders()
        process_image = partial(self._images.warm_up, Image.fromarray(np.zeros((64, 64, 3), np.uint8)))
        process_image()
        if "mm" in self.pools:
            self.pools["mm"].submit(process_image).result()

    @property
    def _token(self) -> str:
        return self._images.image_token

    def tokenize_chat(self, text: str, options: ChatOptions, images: ProcessedImages | None) -> RenderedPrompt:
        """Replaces each image's token by the tokens of the processed image, and tokenizes the text."""
        with_bos = self._with_bos(text, options)
        if images is None:
            return self._tokenized(text, with_bos, param="messages")
        if options.truncate_prompt_tokens is not None:
            raise RequestError("truncate_prompt_tokens cannot be combined with images", param="truncate_prompt_tokens")
        first, *others = text.split(self._token)
        if len(others) != len(images.placeholders):
            raise RequestError(
                f"the prompt has {len(others)} placeholders for images ({self._token}) but "
                f"{len(images.placeholders)} images: no text may contain {self._token}, and tool messages may hold "
                "text only",
                param="messages",
            )
        expanded = "".join([first, *(a + b for a, b in zip(images.placeholders, others, strict=True))])
        prompt = self._tokenized(expanded, with_bos, param="messages")
        types = self._images.token_types(prompt.token_ids)
        tensors = images.tensors if types is None else {**images.tensors, "mm_token_type_ids": types}
        return RenderedPrompt(prompt.token_ids, prompt.text, PromptInputs(mm=tensors))

    async def _process(self, files: list[ImageFile]) -> ProcessedImages:
        """One image after the other: other prompts get their turn, and a client that leaves ends it."""
        run_in_executor = partial(asyncio.get_running_loop().run_in_executor, self._mm_executor)
        images: list[ProcessedImages] = []
        num_tokens = 0
        for file in files:
            images.append(await run_in_executor(self._images.process, file))
            num_tokens += images[-1].placeholders[0].count(self._token)
            if self.max_model_len is not None and num_tokens >= self.max_model_len:
                raise RequestError(
                    f"The first {len(images)} of {len(files)} images have {num_tokens} tokens, but the model's maximum "
                    f"context length is {self.max_model_len} tokens (--max-model-len).",
                    param="messages",
                )
        return await run_in_executor(self._images.join, images, files)

    async def _load(self, parts: list[ImagePart], take_room: TakeRoom) -> list[ImageFile]:
        turns = asyncio.Semaphore(_NUM_LOADS)

        async def load(part: ImagePart) -> ImageFile:
            async with turns:
                try:
                    return ImageFile(part.name, await self._media.load(part.url, take_room))
                except MediaError as err:
                    raise RequestError(f"{part.name}: {err}", param="messages") from err

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(load(part)) for part in parts]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    def _check_num_images(self, parts: list[ImagePart]) -> None:
        most = self.config.max_images
        if len(parts) > most:
            raise RequestError(
                f"At most {most} image(s) may be provided in one prompt, got {len(parts)} (--limit-mm-per-prompt)",
                param="messages",
            )

    def _with_bos(self, text: str, options: ChatOptions) -> ChatOptions:
        """Adds special tokens unless the template wrote the begin-of-text token, as processors do."""
        bos = self.tokenizer.loaded.bos_token
        has_bos = bos is not None and text.startswith(bos)
        return replace(options, add_special_tokens=options.add_special_tokens or not has_bos)


def _image_parts(messages: list[dict[str, Any]]) -> list[ImagePart]:
    parts = []
    for i, message in enumerate(messages):
        for j, part in enumerate(parts_of(message)):
            if is_image(part):
                name = f"messages[{i}].content[{j}]"
                parts.append(ImagePart(name, _url_of(part, name)))
    return parts


def _url_of(part: dict[str, Any], name: str) -> str:
    """OpenAI's `{"image_url": {"url": ..., "detail": ...}}`, or the URL alone; `detail` has no effect."""
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str) or not url:
        example = '{"url": "data:image/png;base64,..."}'
        raise RequestError(f"{name} needs an image_url such as {example}", param="messages")
    return url


def _cache_bytes(config: RendererConfig) -> int:
    return min(int(config.mm_processor_cache_gb * (1 << 30)), int(available_bytes() * _MEMORY_SHARE))
