"""Builds the renderer for a model's files; imports only the kind that they need."""

from concurrent.futures import Executor
from importlib import import_module

from server.terms.config import ModelFiles, RendererConfig
from server.text.model_files.model_kind import accepts_images
from server.text.model_files.tokenizer_files import RENDERERS, TokenizerLoadError, find_tokenizer_mode, foreign_problem
from server.text.renderers.base import BaseRenderer


def build_renderer(files: ModelFiles, config: RendererConfig, *, executor: Executor | None = None) -> BaseRenderer:
    """The renderer for these files; call it on the main thread, since it may import torch.

    `executor` replaces its pools; the caller closes it.

    Raises:
        TokenizerLoadError: the tokenizer or the operator's chat template is missing or broken.
    """
    if problem := foreign_problem(files.tokenizer_path, config.tokenizer_mode):
        raise TokenizerLoadError(problem)
    kind = import_renderer(find_tokenizer_mode(files.tokenizer_path, config.tokenizer_mode))
    has_images = config.max_images and accepts_images(files.path)
    load_vision = import_module("server.text.renderers.images.vision").VisionPart if has_images else None
    return kind(files, config, executor=executor, load_vision=load_vision)


def import_renderer(mode: str) -> type[BaseRenderer]:
    """The class for a tokenizer mode.

    Raises:
        TokenizerLoadError: the library of its tokenizers is not installed.
    """
    module, _, name = RENDERERS[mode].path.partition(":")
    try:
        found: type[BaseRenderer] = getattr(import_module(module), name)
    except ImportError as err:
        reason = f"--tokenizer-mode {mode} needs the Python package {err.name}, which is not installed"
        raise TokenizerLoadError(f"{reason}: install vllm-cli with its extra `embedded`") from err
    return found
