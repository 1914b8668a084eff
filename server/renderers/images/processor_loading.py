"""Loads the processor of a vision model with Pillow and numpy, without torchvision."""

import importlib
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from server.renderers.tokenizers.loading import TokenizerLoadError, read_json_object

_CONFIGS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


class ProcessorLoadError(TokenizerLoadError):
    """The processor cannot be loaded; the message is one line that names the folder and the fault."""


def load_processor(path: Path, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
    """Loads the folder's processor for this tokenizer, to which it may add tokens; call it on the main
    thread.

    Videos are not supported: their processors need torchvision.

    Raises:
        ProcessorLoadError: the processor is missing, broken, or does not work without videos.
    """
    try:
        kind = _processor_class(path)
        if not hasattr(kind, "replace_image_token"):
            raise ProcessorLoadError(f"transformers {transformers.__version__} is too old")
        settings, _ = kind.get_processor_dict(path, local_files_only=True)
        parts = {
            "tokenizer": tokenizer,
            "image_processor": AutoImageProcessor.from_pretrained(path, backend="pil", local_files_only=True),
        }
        arguments = [parts.get(name) for name in kind.get_attributes()]
        return _images_only(kind).from_args_and_dict(arguments, settings)
    except Exception as err:  # transformers raises any kind of error for a broken folder
        reason = " ".join(str(err).split()) or type(err).__name__
        raise ProcessorLoadError(
            f"cannot load the image processor in {path}: {reason[:400]} "
            """(--limit-mm-per-prompt '{"image": 0}' serves the model for text alone)"""
        ) from err


def _processor_class(path: Path) -> type[ProcessorMixin]:
    named = [read_json_object(path / name).get("processor_class") for name in _CONFIGS]
    model_type = str(read_json_object(path / "config.json").get("model_type"))
    name = next(filter(None, named), None) or PROCESSOR_MAPPING_NAMES[model_type]
    found: type[ProcessorMixin] = getattr(transformers, name)
    return found


def _images_only(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A subclass that accepts a missing video processor."""
    module = importlib.import_module(kind.__module__)
    if getattr(module, "num2words", str) is None:
        # SmolVLM needs the package num2words only for lengths of videos.
        module.num2words = str  # type: ignore[attr-defined]

    def check_argument(self: ProcessorMixin, name: str, argument: Any) -> type:
        return type(argument)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check_argument})
