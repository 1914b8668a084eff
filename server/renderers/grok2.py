"""Renders with Grok-2's tokenizer and a chat template."""

from concurrent.futures import Executor
from typing import Any

from server.config import ModelFiles, RendererConfig
from server.renderers.hf import TemplateRenderer
from server.renderers.prompts import ChatOptions
from server.renderers.tokenizers.grok2_tokenizer import Grok2Tokenizer


class Grok2Renderer(TemplateRenderer):
    """Uses the operator's template, or else the checkpoint's, or else Grok-2's own."""

    def __init__(self, files: ModelFiles, config: RendererConfig, *, executor: Executor | None = None) -> None:
        self._grok2 = Grok2Tokenizer.from_folder(files.tokenizer_path)
        super().__init__(files, config, self._grok2, executor=executor)

    def render_messages(self, messages: list[dict[str, Any]], options: ChatOptions) -> str:
        return self._apply(self._grok2, self.chat_template, messages, options)

    @property
    def chat_template(self) -> str:
        return self.config.chat_template or self._grok2.chat_template
