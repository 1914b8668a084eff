"""Renders with a Hugging Face tokenizer and a chat template."""

import inspect
from concurrent.futures import Executor
from functools import lru_cache
from typing import Any

import jinja2
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from base.errors import RequestError
from server.config import ModelFiles, RendererConfig
from server.model_files.tokenizer_files import TokenizerLoadError
from server.renderers.base import BaseRenderer
from server.renderers.prompts import ChatOptions, ContentFormat, Message, to_conversation, without_developer
from server.renderers.tokenizers.hf_tokenizer import HfTokenizer

_RESERVED = {
    "messages",
    *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    *inspect.signature(render_jinja_template).parameters,
}
"""Names that `chat_template_kwargs` may not set."""
_TEXT, _OTHER_FIELD = "zq-text", "zq-field"
"""In the message that finds out how a template expects contents."""


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


def check_chat_template(template: str) -> None:
    """Compiles the operator's template, so that a mistake in it fails the start and not every request.

    Raises:
        TokenizerLoadError: it is not a valid Jinja template.
    """
    try:
        _compile_jinja_template(template)
    except jinja2.TemplateSyntaxError as err:
        raise TokenizerLoadError(f"--chat-template is not a Jinja template: line {err.lineno}: {err.message}") from err


def resolve_chat_template(
    tokenizer: PreTrainedTokenizerBase, given: str | None, tools: list[dict[str, Any]] | None
) -> str:
    """The template's text: `given`, or else the tokenizer's own for these tools.

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
    _check_reserved(template_kwargs)
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


def _check_reserved(template_kwargs: dict[str, Any]) -> None:
    if reserved := sorted(_RESERVED & template_kwargs.keys()):
        raise RequestError(f"chat_template_kwargs may not set {', '.join(reserved)}", param="chat_template_kwargs")


def _describe(err: Exception) -> str:
    """The template's own message, as from `raise_exception(...)`; for other errors with the error's type."""
    return str(err) if isinstance(err, jinja2.TemplateError) and str(err) else f"{type(err).__name__}: {err}"


@lru_cache(maxsize=32)
def detect_content_format(tokenizer: PreTrainedTokenizerBase, template: str) -> ContentFormat:
    """`openai` for a template that writes the texts of a user's parts, otherwise `string`.

    vLLM looks for a loop over a message's content; for the templates of models, the result is the same.
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
        if _TEXT in text and _OTHER_FIELD not in text:  # without a loop, the list itself may be written
            return "openai"
    return "string"
