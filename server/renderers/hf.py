"""Renders with a Hugging Face tokenizer and a chat template."""

from concurrent.futures import Executor
from typing import Any

from server.config import ModelFiles, RendererConfig
from server.renderers.base import BaseRenderer
from server.renderers.chat_template import (
    check_chat_template,
    detect_content_format,
    resolve_chat_template,
    safe_apply_chat_template,
)
from server.renderers.messages import to_conversation
from server.renderers.prompts import ChatOptions
from server.renderers.tokenizers.hf_tokenizer import HfTokenizer


class HfRenderer(BaseRenderer):
    """Renders the operator's template, or else the model's.

    Build it on the main thread: loading may import torch.
    """

    image_token: str | None = None
    """The text that stands for an image in a prompt; None if the model takes no images."""

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
        if config.chat_template is not None:
            check_chat_template(config.chat_template)
        super().__init__(files, config, self._hf, executor=executor)

    def warm_up(self) -> None:
        if self.chat_template is not None:
            detect_content_format(self._hf.loaded, self.chat_template)

    def render_messages(self, messages: list[dict[str, Any]], options: ChatOptions) -> str:
        tokenizer = self._hf.loaded
        template = resolve_chat_template(tokenizer, self.config.chat_template, options.tools or None)
        wanted = self.config.chat_template_content_format
        content_format = detect_content_format(tokenizer, template) if wanted == "auto" else wanted
        return safe_apply_chat_template(
            tokenizer,
            to_conversation(messages, content_format, self.image_token),
            template=template,
            options=options,
            template_kwargs=self.config.default_chat_template_kwargs | options.chat_template_kwargs,
        )

    @property
    def chat_template(self) -> str | None:
        """The template for conversations without tools; None if there is none."""
        own = self._hf.loaded.chat_template
        return self.config.chat_template or (own.get("default") if isinstance(own, dict) else own)

    @property
    def tool_template(self) -> str | None:
        own = self._hf.loaded.chat_template
        named = own.get("tool_use") if isinstance(own, dict) else None
        return self.config.chat_template or named or self.chat_template
