"""Decodes images, and turns them into tensors and prompt texts with the model's image processor."""

import importlib
from collections.abc import Hashable, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import transformers
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import AutoImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from base.errors import RequestError
from base.machine.memory import available_bytes
from base.wording import one_line
from server.terms.bounded_cache import BoundedCache
from server.terms.config import RendererConfig
from server.terms.types import TensorData
from server.text.model_files import TokenizerLoadError, read_json_object
from server.text.renderers.images.fetcher import MediaError
from server.text.renderers.prompts import ProcessedImages

_FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Accepted formats. Pillow decodes them in this process, but runs other programs for formats such as EPS."""
_PLUGINS: Final = ("Bmp", "Gif", "Jpeg", "Mpo", "Png", "Tiff", "WebP")
"""Pillow's modules for these formats. MPO is for JPEG files with several images."""

_WHITE = (255, 255, 255)
_MEMORY_SHARE = 0.25
"""The image cache may use this share of the memory that is free at the start."""

_CONFIGS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Files that may name the processor's class."""
_TILED = ("Idefics3Processor", "SmolVLMProcessor")
"""Processors that return one row of tiles per prompt, [1, tiles, ...], instead of one entry per image."""


def import_decoders() -> None:
    """Imports all decoders. Otherwise, threads would import them. Call this function on the main thread."""
    for plugin in _PLUGINS:
        importlib.import_module(f"PIL.{plugin}ImagePlugin")
    Image.preinit()


def decode_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decodes the first frame in RGB, rotated upright. Transparent pixels become white.

    The size in the header is checked before any pixel is decoded.

    Raises:
        MediaError: the file is not an image, is broken, or has more than `max_pixels`.
    """
    try:
        formats: list[str] = [name for name in _FORMATS if name in Image.OPEN]
        image: Image.Image = Image.open(BytesIO(data), formats=formats)
        width, height = image.size
        if width * height > max_pixels:
            raise MediaError(
                f"the image has {width}x{height} pixels, more than {max_pixels} in all (VLLM_MAX_IMAGE_PIXELS)"
            )
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise MediaError(f"the image is too large: {err}") from err
    except UnidentifiedImageError as err:
        raise MediaError(f"not an image in a known format ({', '.join(_FORMATS)})") from err
    except Exception as err:  # decoders raise any kind of error for a broken file
        raise MediaError(f"the image is broken: {str(err)[:200] or type(err).__name__}") from err


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    background = Image.new("RGB", layer.size, _WHITE)
    background.paste(layer, mask=layer.getchannel("A"))
    return background


class ImageFile(NamedTuple):
    """An image file from a request."""

    name: str
    """The image's position in the request, such as `messages[0].content[1]`."""
    data: bytes


class ImageProcessor:
    """A model's image processor with its cache. Every method runs in the renderer's image thread."""

    def __init__(self, processor: ProcessorMixin, config: RendererConfig) -> None:
        self._processor = processor
        self._images = processor.image_processor
        self._axis = 1 if type(processor).__name__ in _TILED else 0
        self._max_pixels = config.max_image_pixels
        self._settings = config.mm_processor_kwargs
        max_bytes = min(int(config.mm_processor_cache_gb * (1 << 30)), int(available_bytes() * _MEMORY_SHARE))
        self.cache = BoundedCache[Hashable, ProcessedImages](max_bytes, lambda images: images.num_bytes)

    @property
    def image_token(self) -> str:
        """The text that a chat template writes for an image."""
        return str(self._processor.image_token)

    def process(self, file: ImageFile) -> ProcessedImages:
        """Processes one image. Raises RequestError if the image is broken or too large."""
        return self._cached([file])

    def join(self, images: Sequence[ProcessedImages], files: Sequence[ImageFile]) -> ProcessedImages:
        """Joins all images of a prompt. The result is the same as if they were processed together.

        Raises:
            RequestError: images of different sizes have too many pixels together.
        """
        return _join(images, self._axis) or self._cached(files)

    def warm_up(self, image: Image.Image) -> None:
        """Processes an image without caching it. transformers imports some modules at the first image."""
        self._compute([image])

    def token_types(self, token_ids: list[int]) -> TensorData | None:
        """Marks the tokens that stand for images. Returns None for models that take no such marks."""
        if not self._returns_token_types:
            return None
        types = self._processor.create_mm_token_type_ids([token_ids])
        return _to_tensor(np.asarray(types, dtype=np.int64))

    @property
    def _returns_token_types(self) -> bool:
        """Whether the processor returns token types. Since transformers 5.23, an attribute shows this."""
        is_set = getattr(self._processor, "return_mm_token_type_ids", None)
        if is_set is None:
            defaults = self._processor.valid_processor_kwargs._defaults
            is_set = defaults.get("text_kwargs", {}).get("return_mm_token_type_ids")
        return bool(is_set)

    def _cached(self, files: Sequence[ImageFile]) -> ProcessedImages:
        key = tuple(sha256(file.data).digest() for file in files)
        found = self.cache.use(key)
        if found is None:
            found = self._compute(self._decode(files))
            self.cache.put(key, found)
        return found

    def _decode(self, files: Sequence[ImageFile]) -> list[Image.Image]:
        """Decodes the images. They share one limit of pixels, because they are in memory together."""
        images: list[Image.Image] = []
        for file in files:
            num_pixels = sum(image.width * image.height for image in images)
            try:
                images.append(decode_image(file.data, max_pixels=self._max_pixels - num_pixels))
            except MediaError as err:
                raise RequestError(f"{file.name}: {err}", param="messages") from err
        return images

    def _compute(self, images: list[Image.Image]) -> ProcessedImages:
        try:
            kwargs = self._image_kwargs()
            outputs = self._images(images, **kwargs)
            placeholders = tuple(
                self._processor.replace_image_token(outputs, image_idx=i, **kwargs) for i in range(len(images))
            )
        except Exception as err:  # the client chooses the image's proportions
            reason = str(err)[:300] or type(err).__name__
            raise RequestError(f"the image processor failed: {reason}", param="messages") from err
        wanted = self._images.model_input_names
        tensors: dict[str, TensorData] = {}
        for name in wanted:
            if name in outputs:
                tensors[name] = _to_tensor(_narrow(name, np.asarray(outputs[name])))
        return ProcessedImages(tensors, placeholders)

    def _image_kwargs(self) -> dict[str, Any]:
        processor = self._processor
        merged = processor._merge_kwargs(
            processor.valid_processor_kwargs, tokenizer_init_kwargs=processor.tokenizer.init_kwargs, **self._settings
        )
        kwargs: dict[str, Any] = merged["images_kwargs"]
        return {**kwargs, "return_tensors": "np"}


def _narrow(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Shrinks masks from eight bytes per pixel to one. The engine restores the type."""
    return array.astype(np.bool_) if name.endswith("_mask") else array


def _to_tensor(array: npt.NDArray[Any]) -> TensorData:
    contiguous = np.ascontiguousarray(array)
    return TensorData(contiguous.dtype.name, contiguous.shape, contiguous.data.cast("B"))


def _join(parts: Sequence[ProcessedImages], axis: int) -> ProcessedImages | None:
    """Concatenates the images along the axis. Returns None if their sizes differ along another axis."""
    if len(parts) == 1:
        return parts[0]
    tensors: dict[str, TensorData] = {}
    for name in parts[0].tensors:
        pieces = [part.tensors[name] for part in parts]
        forms = {(piece.dtype, piece.shape[:axis], piece.shape[axis + 1 :]) for piece in pieces}
        if len(forms) > 1:
            return None
        dtype, before, after = forms.pop()
        if axis and before != (1,):
            return None
        length = sum(piece.shape[axis] for piece in pieces)
        content = memoryview(b"".join(piece.data for piece in pieces))
        tensors[name] = TensorData(dtype, (*before, length, *after), content)
    return ProcessedImages(tensors, tuple(text for part in parts for text in part.placeholders))


def load_processor(path: Path, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
    """Loads the folder's processor, which may add tokens to the tokenizer. Call this on the main thread.

    Videos are not supported, because their processors need torchvision.

    Raises:
        TokenizerLoadError: the processor is missing, broken, or does not work without videos.
    """
    try:
        kind = _processor_class(path)
        settings, _ = kind.get_processor_dict(path, local_files_only=True)
        parts = {
            "tokenizer": tokenizer,
            "image_processor": AutoImageProcessor.from_pretrained(
                path, backend="pil", trust_remote_code=False, local_files_only=True
            ),
        }
        arguments = [parts.get(name) for name in kind.get_attributes()]
        return _images_only(kind).from_args_and_dict(arguments, settings)
    except Exception as err:  # transformers raises any kind of error for a broken folder
        raise TokenizerLoadError(
            f"cannot load the image processor in {path}: {one_line(err)[:400]} "
            """(--limit-mm-per-prompt '{"image": 0}' serves the model for text alone)"""
        ) from err


def _processor_class(path: Path) -> type[ProcessorMixin]:
    named = [read_json_object(path / name).get("processor_class") for name in _CONFIGS]
    model_type = str(read_json_object(path / "config.json").get("model_type"))
    name = next(filter(None, named), None) or PROCESSOR_MAPPING_NAMES[model_type]
    found: type[ProcessorMixin] = getattr(transformers, name)
    return found


def _images_only(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A subclass of the processor's class that works without a video processor."""
    module = importlib.import_module(kind.__module__)
    if getattr(module, "num2words", str) is None:
        # SmolVLM needs the package num2words only for the lengths of videos.
        module.num2words = str  # type: ignore[attr-defined]

    def check_argument(self: ProcessorMixin, name: str, argument: Any) -> type:
        return type(argument)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check_argument})
