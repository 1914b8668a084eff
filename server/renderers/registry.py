"""Which renderer serves which model."""

from server.config import ModelFiles, RendererConfig
from server.renderers.base import BaseRenderer
from server.renderers.hf import HfRenderer


def build_renderer(files: ModelFiles, config: RendererConfig) -> BaseRenderer:
    """The renderer for these files; call it on the main thread, since it may import torch.

    Raises:
        TokenizerLoadError: the tokenizer or the operator's chat template is missing or broken.
    """
    return HfRenderer(files, config)
