"""Loads and processes the images of conversations for all renderers, with a processor of transformers."""

import asyncio
from concurrent.futures import Executor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from base.errors import RequestError
from server.terms.concurrency import run_concurrently
from server.terms.config import ModelFiles, RendererConfig
from server.terms.types import PromptInputs
from server.text.renderers.conversation import is_image, parts_of
from server.text.renderers.images.fetcher import MediaError, TakeRoom
from server.text.renderers.images.loader import MediaLoader, room_for_images
from server.text.renderers.images.processor import ImageFile, ImageProcessor, import_decoders, load_processor
from server.text.renderers.prompts import HeldBytes, ProcessedImages, RenderedPrompt

_NUM_LOADS = 8
"""The most images of one prompt that are fetched at once."""


class ImagePart(NamedTuple):
    """An image in a conversation."""

    name: str
    """The image's position in the request, such as `messages[0].content[1]`."""
    url: str


class VisionPart:
    """Fetches images on the event loop, and processes them in the image thread, which is `executor`.

    The token ids of a prompt equal those of `processor.apply_chat_template(..., tokenize=True)`.
    """

    def __init__(
        self, files: ModelFiles, config: RendererConfig, tokenizer: PreTrainedTokenizerBase, executor: Executor
    ) -> None:
        """Create this object on the main thread. The processor may add tokens to the tokenizer.

        Raises:
            TokenizerLoadError: the processor is missing or broken.
        """
        processor = load_processor(files.path, tokenizer)
        self.chat_template: str | None = processor.chat_template
        """The processor's own chat template, for a tokenizer that has none."""
        self._images = ImageProcessor(processor, config)
        self.cache = self._images.cache
        self._media = MediaLoader(config, executor)
        self._executor = executor
        self._max_images = config.max_images
        self.image_token = self._images.image_token

    def find_images(self, messages: list[dict[str, Any]]) -> list[ImagePart]:
        """Finds the images of a conversation, without loading them.

        Raises:
            RequestError: there are too many images, or one has no URL.
        """
        parts = []
        for i, message in enumerate(messages):
            for j, part in enumerate(parts_of(message)):
                if is_image(part):
                    name = f"messages[{i}].content[{j}]"
                    parts.append(ImagePart(name, _url_of(part, name)))
        if len(parts) > self._max_images:
            raise RequestError(
                f"At most {self._max_images} image(s) may be provided in one prompt, got {len(parts)} "
                "(--limit-mm-per-prompt)",
                param="messages",
            )
        return parts

    async def load(self, parts: list[ImagePart], held: HeldBytes, *, max_tokens: int | None) -> ProcessedImages:
        """Loads and processes images, which must have fewer than `max_tokens` tokens together.

        Raises:
            RequestError: an image cannot be loaded, or the images have too many tokens.
        """
        with room_for_images(held) as take_room:
            return await self._process(await self._load(parts, take_room), max_tokens)

    def warm_up(self) -> None:
        """Processes an image, so that the image thread imports nothing for the first request."""
        import_decoders()
        image = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
        process_image = partial(self._images.warm_up, image)
        process_image()
        self._executor.submit(process_image).result()

    def expand(self, text: str, images: ProcessedImages) -> str:
        """Replaces each image's token in the text by the tokens of the processed image.

        Raises:
            RequestError: the numbers of images and of image tokens in the text differ.
        """
        first, *others = text.split(self.image_token)
        if len(others) != len(images.placeholders):
            raise RequestError(
                f"the prompt has {len(others)} placeholders for images ({self.image_token}) but "
                f"{len(images.placeholders)} images: no text may contain {self.image_token}, and tool messages may "
                "hold text only",
                param="messages",
            )
        pairs = zip(images.placeholders, others, strict=True)
        return "".join([first, *(placeholder + text for placeholder, text in pairs)])

    def attach(self, prompt: RenderedPrompt, images: ProcessedImages) -> RenderedPrompt:
        """Adds the images' tensors to the prompt, which already has the images' tokens."""
        types = self._images.token_types(prompt.token_ids)
        tensors = images.tensors if types is None else {**images.tensors, "mm_token_type_ids": types}
        return RenderedPrompt(prompt.token_ids, prompt.text, PromptInputs(mm=tensors))

    async def _process(self, files: list[ImageFile], max_tokens: int | None) -> ProcessedImages:
        """Processes one image after the other.

        In between, images of other prompts can be processed, and a disconnect ends the work.
        """
        run_in_executor = partial(asyncio.get_running_loop().run_in_executor, self._executor)
        images: list[ProcessedImages] = []
        num_tokens = 0
        for file in files:
            images.append(await run_in_executor(self._images.process, file))
            num_tokens += images[-1].placeholders[0].count(self.image_token)
            if max_tokens is not None and num_tokens >= max_tokens:
                raise RequestError(
                    f"The first {len(images)} of {len(files)} images have {num_tokens} tokens, but the model's maximum "
                    f"context length is {max_tokens} tokens (--max-model-len).",
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

        return await run_concurrently(map(load, parts))


def _url_of(part: dict[str, Any], name: str) -> str:
    """Reads `{"image_url": {"url": ..., "detail": ...}}` or just the URL. `detail` has no effect."""
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str) or not url:
        example = '{"url": "data:image/png;base64,..."}'
        raise RequestError(f"{name} needs an image_url such as {example}", param="messages")
    return url
