"""Renders with a Hugging Face tokenizer and its chat template."""

from concurrent.futures import Executor
from typing import Any

from server.config import ModelFiles, RendererConfig
from server.renderers.base import BaseRenderer
from server.renderers.chat_template import (
    AppliesChatTemplate,
    check_chat_template,
    resolve_chat_template,
    safe_apply_chat_template,
)
from server.renderers.content_format import detect_content_format, resolve_content_format
from server.renderers.foreign_template import ForeignTemplate
from server.renderers.hf_tokenizer import HfTokenizer
from server.renderers.messages import to_conversation
from server.renderers.prompts import ChatOptions


class HfRenderer(BaseRenderer):
    """The tokenizer that was loaded stays with the event loop; each thread of the pool has a copy of its own.

    Build it on the main thread: loading may import torch.
    """

    image_token: str | None = None
    """What stands for an image in a text; None where the model sees none."""

    def __init__(
        self,
        files: ModelFiles,
        config: RendererConfig,
        *,
        executor: Executor | None = None,
        tokenizer: HfTokenizer | None = None,
    ) -> None:
        """`tokenizer` is the folder's, if it is loaded already."""
        if config.chat_template is not None:
            check_chat_template(config.chat_template)
        self._hf = tokenizer or HfTokenizer.from_folder(
            files.tokenizer_path, trust_remote_code=config.trust_remote_code
        )
        super().__init__(files, config, self._hf, executor=executor)

    def render_messages(self, messages: list[dict[str, Any]], options: ChatOptions) -> str:
        tokenizer = self._hf.of_this_thread
        template = resolve_chat_template(tokenizer, self._given_template(options), options.tools or None)
        wanted = self.config.chat_template_content_format
        applies: AppliesChatTemplate = tokenizer
        if options.chat_template is None or template in _names_of(tokenizer.chat_template):
            content_format = resolve_content_format(template, wanted)
        else:
            applies = foreign = ForeignTemplate(self._template_process, template, dict(tokenizer.special_tokens_map))
            content_format = foreign.content_format(wanted)
        return safe_apply_chat_template(
            applies,
            to_conversation(messages, content_format, self.image_token),
            template=template,
            options=options,
            template_kwargs=self.config.default_chat_template_kwargs | options.chat_template_kwargs,
        )

    @property
    def chat_template(self) -> str | None:
        own = self._hf.loaded.chat_template
        return self.config.chat_template or (own.get("default") if isinstance(own, dict) else own)

    def warm_up(self) -> None:
        if self.chat_template is not None:
            detect_content_format(self.chat_template)
        super().warm_up()


def _names_of(templates: Any) -> set[str]:
    """What a request may call the model's own templates, if there are several."""
    return set(templates) if isinstance(templates, dict) else set()
