"""Chooses the renderer for a model."""

from server.config import ModelFiles, RendererConfig
from server.model_files.kind import accepts_images
from server.renderers.base import BaseRenderer


def build_renderer(files: ModelFiles, config: RendererConfig) -> BaseRenderer:
    """Builds the renderer for these files; call it on the main thread, since it may import torch.

    Raises:
        TokenizerLoadError: the tokenizer or the operator's chat template is missing or broken.
    """
    if config.max_images and accepts_images(files.path):
        from server.renderers.vision import VisionRenderer

        return VisionRenderer(files, config)
    from server.renderers.hf import HfRenderer

    return HfRenderer(files, config)
