"""Renders with a Hugging Face tokenizer and a chat template, the operator's or else the model's."""

from dataclasses import replace
from typing import Any

from server.text.renderers.base import BaseRenderer, LoadVision
from server.text.renderers.chat_template import (
    check_chat_template,
    detect_content_format,
    resolve_chat_template,
    safe_apply_chat_template,
)
from server.text.renderers.conversation import to_conversation
from server.text.renderers.images.processor_cache import ProcessedImages
from server.text.renderers.prompts import ChatOptions, RenderedPrompt
from server.text.renderers.tokenizers.hf_tokenizer import HfTokenizer
from server.text.renderers.tokenizers.loading import load_tokenizer


class HfRenderer(BaseRenderer):
    """Renders templates with Jinja."""

    def _load(self, load_vision: LoadVision | None) -> None:
        files, config = self.files, self.config
        self._loaded = load_tokenizer(files.tokenizer_path, config.trust_remote_code)
        if load_vision is not None:
            self.vision = load_vision(files, config, self._loaded, self._mm_executor)
            self._loaded.chat_template = self._loaded.chat_template or self.vision.chat_template
        self.tokenizer = HfTokenizer(self._loaded)
        if config.chat_template is not None:
            check_chat_template(config.chat_template)

    def render_messages(
        self, messages: list[dict[str, Any]], options: ChatOptions, images: ProcessedImages | None = None
    ) -> str:
        template = resolve_chat_template(self._loaded, self.config.chat_template, options.tools or None)
        wanted = self.config.chat_template_content_format
        content_format = detect_content_format(self._loaded, template) if wanted == "auto" else wanted
        text = safe_apply_chat_template(
            self._loaded,
            to_conversation(messages, content_format, self.image_token),
            template=template,
            options=options,
            template_kwargs=self.config.default_chat_template_kwargs | options.chat_template_kwargs,
        )
        return text if images is None or self.vision is None else self.vision.expand(text, images)

    def warm_up(self) -> None:
        super().warm_up()
        if self.chat_template is not None:
            detect_content_format(self._loaded, self.chat_template)

    @property
    def chat_template(self) -> str | None:
        own = self._loaded.chat_template
        return self.config.chat_template or (own.get("default") if isinstance(own, dict) else own)

    @property
    def tool_template(self) -> str | None:
        own = self._loaded.chat_template
        named = own.get("tool_use") if isinstance(own, dict) else None
        return self.config.chat_template or named or self.chat_template

    def _tokenize_chat(self, text: str, options: ChatOptions) -> RenderedPrompt:
        """As processors of images do: with special tokens unless the template wrote the first of them."""
        if self.vision is not None:
            bos = self._loaded.bos_token
            has_bos = bos is not None and text.startswith(bos)
            options = replace(options, add_special_tokens=options.add_special_tokens or not has_bos)
        return super()._tokenize_chat(text, options)
