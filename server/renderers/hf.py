"""Renders with a Hugging Face tokenizer and its chat template."""

from concurrent.futures import Executor
from typing import Any

from server.config import ModelFiles, RendererConfig
from server.renderers.conversations.chat_template import resolve_chat_template
from server.renderers.prompts import ChatOptions
from server.renderers.template_renderer import TemplateRenderer
from server.renderers.tokenizers.hf_tokenizer import HfTokenizer


class HfRenderer(TemplateRenderer):
    """The event loop uses the loaded tokenizer; each thread of the pool has a copy of it.

    Build it on the main thread: loading may import torch.
    """

    def __init__(
        self,
        files: ModelFiles,
        config: RendererConfig,
        *,
        executor: Executor | None = None,
        tokenizer: HfTokenizer | None = None,
    ) -> None:
        """`tokenizer` is the tokenizer in the folder, if the caller has loaded it."""
        self._hf = tokenizer or HfTokenizer.from_folder(
            files.tokenizer_path, trust_remote_code=config.trust_remote_code
        )
        super().__init__(files, config, self._hf, executor=executor)

    def render_messages(self, messages: list[dict[str, Any]], options: ChatOptions) -> str:
        tokenizer = self._hf.for_this_thread
        template = resolve_chat_template(tokenizer, self.config.chat_template, options.tools or None)
        return self._apply(tokenizer, template, messages, options)

    @property
    def chat_template(self) -> str | None:
        own = self._hf.loaded.chat_template
        return self.config.chat_template or (own.get("default") if isinstance(own, dict) else own)

    @property
    def tool_template(self) -> str | None:
        own = self._hf.loaded.chat_template
        named = own.get("tool_use") if isinstance(own, dict) else None
        return self.config.chat_template or named or self.chat_template
