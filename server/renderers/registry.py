"""Chooses the renderer for a model."""

from collections.abc import Callable

from server.config import ModelFiles, RendererConfig, TokenizerMode
from server.model_files.kind import accepts_images
from server.renderers.base import BaseRenderer
from server.renderers.tokenizers.files import is_mistral_format


def build_renderer(files: ModelFiles, config: RendererConfig) -> BaseRenderer:
    """Builds the renderer for these files; call it on the main thread, since it may import torch.

    Raises:
        TokenizerLoadError: the tokenizer or the operator's chat template is missing or broken.
    """
    mode = find_tokenizer_mode(files) if config.tokenizer_mode == "auto" else config.tokenizer_mode
    return _renderer_class(mode, files, config)(files, config)


def keep_tokenizer_of(files: ModelFiles) -> None:
    """Loads the tokenizer for a later `build_renderer`, in this process or a fork of it; starts no thread.

    Does nothing for Mistral's files, which load fast enough.

    Raises:
        TokenizerLoadError: the tokenizer is missing or broken.
    """
    if find_tokenizer_mode(files) == "hf":
        from server.renderers.tokenizers.loading import keep_tokenizer

        keep_tokenizer(files.tokenizer_path)


def find_tokenizer_mode(files: ModelFiles) -> TokenizerMode:
    """The mode that `--tokenizer-mode auto` selects for these files; reads file names and JSON only."""
    return "mistral" if is_mistral_format(files.tokenizer_path) else "hf"


def _renderer_class(
    mode: TokenizerMode, files: ModelFiles, config: RendererConfig
) -> Callable[[ModelFiles, RendererConfig], BaseRenderer]:
    """Imports only the chosen class: each one imports libraries that the others do not need."""
    if mode == "mistral":
        from server.renderers.mistral import MistralRenderer

        return MistralRenderer
    if config.max_images and accepts_images(files.path):
        from server.renderers.vision import VisionRenderer

        return VisionRenderer
    from server.renderers.hf import HfRenderer

    return HfRenderer
