"""Renders conversations with a Hugging Face tokenizer and the operator's or the model's chat template."""

import inspect
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jinja2
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from base.errors import RequestError
from server.text.model_files.tokenizer_files import TokenizerLoadError
from server.text.renderers.base import BaseRenderer
from server.text.renderers.conversation import ContentFormat, Message, to_conversation, without_developer
from server.text.renderers.prompts import ChatOptions, ProcessedImages, RenderedPrompt
from server.text.renderers.tokenizers.hf_tokenizer import HfTokenizer
from server.text.renderers.tokenizers.loading import load_tokenizer

_RESERVED = {
    "messages",
    *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    *inspect.signature(render_jinja_template).parameters,
}
"""Names that `chat_template_kwargs` may not set."""
_TEXT, _OTHER_FIELD = "zq-text", "zq-field"
"""Contents of a test message. The rendered message shows the form of contents that a template expects."""


class HfRenderer(BaseRenderer):
    """Renders conversations with Jinja templates."""

    def _load(self) -> None:
        self._loaded = load_tokenizer(self.files.tokenizer_path, self.config.trust_remote_code)
        if self._takes_images:
            self.vision = self._load_vision(self._loaded)
            self._loaded.chat_template = self._loaded.chat_template or self.vision.chat_template
        self.tokenizer = HfTokenizer(self._loaded)
        if self.config.chat_template is not None:
            try:
                _compile_jinja_template(self.config.chat_template)  # a mistake fails the start, not every request
            except jinja2.TemplateSyntaxError as err:
                fault = f"line {err.lineno}: {err.message}"
                raise TokenizerLoadError(f"--chat-template is not a Jinja template: {fault}") from err

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
        """Tokenizes the text of a conversation.

        For models with images, adds special tokens unless the text begins with the first of them. The image
        processors of transformers do the same.
        """
        if self.vision is not None:
            bos = self._loaded.bos_token
            has_bos = bos is not None and text.startswith(bos)
            options = replace(options, add_special_tokens=options.add_special_tokens or not has_bos)
        return super()._tokenize_chat(text, options)


def resolve_chat_template(
    tokenizer: PreTrainedTokenizerBase, given: str | None, tools: list[dict[str, Any]] | None
) -> str:
    """Returns the template `given`, or else the tokenizer's own template for these tools.

    `given` may be the name of one of the tokenizer's own templates.

    Raises:
        RequestError: there is no template.
    """
    try:
        template: str = tokenizer.get_chat_template(given, tools)
    except ValueError as err:
        raise RequestError(
            "this model has no chat template: use /v1/completions, or start the server with --chat-template",
            param="messages",
        ) from err
    return template


def safe_apply_chat_template(
    tokenizer: PreTrainedTokenizerBase,
    conversation: list[Message],
    *,
    template: str,
    options: ChatOptions,
    template_kwargs: dict[str, Any],
) -> str:
    """Renders the prompt's text in Jinja's sandbox.

    Raises:
        RequestError: a template variable has a reserved name, or the template failed or rejected the
            conversation.
    """
    if reserved := sorted(_RESERVED & template_kwargs.keys()):
        raise RequestError(f"chat_template_kwargs may not set {', '.join(reserved)}", param="chat_template_kwargs")
    if not any(quoted in template for quoted in ("'developer'", '"developer"')):
        conversation = without_developer(conversation)
    try:
        text: str = tokenizer.apply_chat_template(
            conversation,
            tools=options.tools or None,
            documents=options.documents,
            chat_template=template,
            add_generation_prompt=options.add_generation_prompt,
            continue_final_message=options.continue_final_message,
            tokenize=False,
            **template_kwargs,
        )
    except Exception as err:  # a template may raise any kind of error
        raise RequestError(f"the chat template failed: {_describe(err)}", param="messages") from err
    return text


def _describe(err: Exception) -> str:
    """Returns the message of an error that the template raised itself. For other errors, adds the type."""
    return str(err) if isinstance(err, jinja2.TemplateError) and str(err) else f"{type(err).__name__}: {err}"


@lru_cache(maxsize=32)
def detect_content_format(tokenizer: PreTrainedTokenizerBase, template: str) -> ContentFormat:
    """Returns `openai` if the template writes the texts of a user message's parts, otherwise `string`.

    vLLM looks for a loop over a message's content instead. The result is the same for models' templates.
    """
    part = {"type": "text", "text": _TEXT, _OTHER_FIELD: ""}
    user: Message = {"role": "user", "content": [part]}
    others: list[Message] = [{"role": "assistant", "content": "a"}, user]
    for conversation in ([user], [user, *others], [{"role": "system", "content": "a"}, user]):
        try:
            text = safe_apply_chat_template(
                tokenizer, conversation, template=template, options=ChatOptions(), template_kwargs={}
            )
        except RequestError:
            continue
        if _TEXT in text and _OTHER_FIELD not in text:  # a template without a loop may write the list itself
            return "openai"
    return "string"
