"""Renders conversations with a tokenizer in Mistral's own format. mistral-common replaces chat templates."""

import logging
import re
from collections.abc import Iterator, Sequence, Set
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from mistral_common.exceptions import InvalidToolException, InvalidToolSchemaException, MistralCommonException
from mistral_common.protocol.instruct.chunk import ImageURLChunk, TextChunk, ThinkChunk
from mistral_common.protocol.instruct.messages import AssistantMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy, SpecialTokens
from mistral_common.tokens.tokenizers.image import ImageEncoder, ImageEncoding
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as LoadedTokenizer
from pydantic import ValidationError

from base.errors import RequestError
from base.wording import one_line
from server.terms.config import RendererConfig
from server.text.model_files.mistral_tokens import piece_bytes
from server.text.model_files.tokenizer_files import TokenizerLoadError, find_mistral_file
from server.text.renderers.base import BaseRenderer
from server.text.renderers.conversation import TEXT_KEYS, Message, is_image, to_conversation
from server.text.renderers.detokenizer import Decode
from server.text.renderers.prompts import ChatOptions, ProcessedImages, check_unicode
from server.text.renderers.tokenizers.tokenizer import Cut, Encoded

logger = logging.getLogger(__name__)

_REQUEST_ERRORS = (MistralCommonException, ValueError, AssertionError)
"""The errors with which mistral-common rejects a conversation."""
_CALL_ID_CHARS = 9
"""The length of Mistral's call ids. Longer ids are cut to their last characters, which are random."""
_ALWAYS_WRITTEN = frozenset({"[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"})
"""Special tokens that are never skipped, because they delimit calls and reasoning."""
_SPECIAL_PIECE = re.compile(r"\[\w+\]")


class MistralRenderer(BaseRenderer):
    """Renders with mistral-common."""

    has_own_tool_format = True

    def _load(self) -> None:
        _check_config(self.config)
        path = self.files.tokenizer_path
        file = find_mistral_file(path)
        if file is None:
            raise TokenizerLoadError(f"no Mistral tokenizer in {path}: no tekken.json, no *.model.v*")
        self.tokenizer = self._mistral = _load(file)
        if self._takes_images:
            from transformers.tokenization_mistral_common import MistralCommonBackend  # noqa: PLC0415 - few models

            self.vision = self._load_vision(MistralCommonBackend(file))
            self._mistral.accept_images()

    def render_messages(
        self, messages: list[dict[str, Any]], options: ChatOptions, images: ProcessedImages | None = None
    ) -> list[int]:
        _check_variables(options)
        placeholders = iter(() if images is None else images.placeholders)
        try:
            request = self._to_request(messages, options, placeholders)
            self._check_request(request, options)
            token_ids: list[int] = self._mistral.loaded.encode_chat_completion(request).tokens
            return token_ids
        except RequestError:
            raise
        except Exception as err:  # rejections are the library's own errors, ValueErrors and assertions alike
            if not isinstance(err, _REQUEST_ERRORS):
                logger.exception("mistral-common failed to encode a conversation")
            is_tool = isinstance(err, InvalidToolException | InvalidToolSchemaException)
            raise RequestError(_reason(err), param="tools" if is_tool else "messages") from err

    def warm_up(self) -> None:
        super().warm_up()
        self.render_messages([{"role": "user", "content": "Hello"}], ChatOptions())

    def _to_request(
        self, messages: list[Message], options: ChatOptions, placeholders: Iterator[str]
    ) -> ChatCompletionRequest[Any]:
        """Builds the request for mistral-common. Raises RequestError, or mistral-common's own errors."""
        checked = to_conversation(messages, "openai", self.image_token)
        _check_last(checked[-1]["role"], options)
        return ChatCompletionRequest.from_openai(
            [_to_message(*pair, placeholders) for pair in zip(messages, checked, strict=True)],
            options.tools or None,
            continue_final_message=options.continue_final_message,
            **self._settings(options),
        )

    def _settings(self, options: ChatOptions) -> dict[str, Any]:
        """Returns the settings that the tokenizer writes into a prompt. Old tokenizers write none."""
        if not self._mistral.has_reasoning_effort:
            return {}
        given = self.config.default_chat_template_kwargs | options.chat_template_kwargs
        return {"reasoning_effort": given.get("reasoning_effort")}

    def _check_request(self, request: ChatCompletionRequest[Any], options: ChatOptions) -> None:
        chunks = [chunk for m in request.messages if isinstance(m.content, list) for chunk in m.content]
        if any(isinstance(chunk, ThinkChunk) for chunk in chunks) and not self._mistral.has_thinking:
            raise RequestError(
                f"this model's tokenizer (v{self._mistral.version}) has no tokens for reasoning: leave 'reasoning', "
                "'reasoning_content' and 'thinking' out of the messages",
                param="messages",
            )
        text = "".join(_texts_of(request))
        if self.prompts.token_limit(options) is None:
            self.prompts.check_length(text)
        check_unicode(text, "messages")


class MistralTokenizer:
    """Implements `Tokenizer` without a lock, since tiktoken and SentencePiece keep no state between calls."""

    def __init__(self, loaded: LoadedTokenizer[Any, Any, Any, Any, Any]) -> None:
        self.loaded = loaded
        self._raw = loaded.instruct_tokenizer.tokenizer
        self.version = int(self._raw.version.value.removeprefix("v"))
        self.vocab_size: int = self._raw.n_words
        self.eos_token_id: int | None = self._raw.eos_id
        self.added_tokens = {token_id: self._raw.id_to_piece(token_id) for token_id in sorted(self._raw.special_ids)}
        pieces = enumerate(self._raw.vocab())
        self.max_token_chars = max(len(piece) for token_id, piece in pieces if token_id not in self.added_tokens)
        self._always_written = frozenset(i for i, name in self.added_tokens.items() if name in _ALWAYS_WRITTEN)

    @property
    def has_thinking(self) -> bool:
        """Whether the vocabulary has tokens that delimit reasoning."""
        return self.version >= 13 and self._raw.is_special(SpecialTokens.begin_think.value)

    @property
    def has_reasoning_effort(self) -> bool:
        """Whether a prompt can set the reasoning effort."""
        return self.version >= 15

    def accept_images(self) -> None:
        """Enables images in conversations. An image's URL holds the special tokens to write for the image."""
        instruct: Any = self.loaded.instruct_tokenizer
        instruct.image_encoder = _ProcessedImageEncoder({name: i for i, name in self.added_tokens.items()})

    def encode(self, text: str, *, add_special_tokens: bool, cut: Cut | None = None) -> list[int]:
        """Raises RequestError if tekken's regular expression fails, as for a million spaces in a row."""
        text.encode()
        try:
            token_ids = self._raw.encode(text, bos=add_special_tokens, eos=False)
        except ValueError as err:
            raise RequestError(f"the text cannot be tokenized: {err}") from err
        if cut is None or cut.side == "right" or len(token_ids) <= cut.limit:
            return token_ids if cut is None else cut.apply(token_ids)
        num_first = int(add_special_tokens)
        return token_ids[:num_first] + token_ids[len(token_ids) - max(0, cut.limit - num_first) :]

    def encode_pair(self, text: str, pair: str, *, cut: Cut | None = None) -> Encoded:
        raise RequestError("this model's tokenizer does not support pairs of texts")

    def cut_text(self, text: str, num_tokens: int) -> str:
        return self.decode(self.encode(text, add_special_tokens=False)[:num_tokens], skip_special_tokens=False)

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return self.loop_decoder(skip_special_tokens=skip_special_tokens)(token_ids)

    def loop_decoder(self, *, skip_special_tokens: bool) -> Decode:
        return partial(self._decode, written=self._always_written if skip_special_tokens else self.added_tokens.keys())

    def token_bytes(self, token_id: int) -> bytes:
        if token_id in self.added_tokens:
            return self.added_tokens[token_id].encode()
        if token_id >= self.vocab_size:
            return b""
        return piece_bytes(self._raw, token_id)

    def _decode(self, token_ids: Sequence[int], written: Set[int]) -> str:
        """Writes the special tokens in `written` by name and decodes each run of ordinary tokens separately.

        Ids without a token are skipped, because a model's last layer may be larger than the vocabulary.
        """
        known = [i for i in token_ids if i < self.vocab_size and (i not in self.added_tokens or i in written)]
        texts: list[str] = []
        for is_special, run in groupby(known, self.added_tokens.__contains__):
            if is_special:
                texts.extend(self.added_tokens[token_id] for token_id in run)
            else:
                texts.append(self._raw.decode(list(run), SpecialTokenPolicy.IGNORE))
        return "".join(texts)


class _ProcessedImageEncoder(ImageEncoder):
    """Writes the image tokens that the processor has computed, instead of processing the image again."""

    def __init__(self, ids: dict[str, int]) -> None:
        self._ids = ids

    def __call__(self, content: Any) -> ImageEncoding:
        tokens = [self._ids[name] for name in _SPECIAL_PIECE.findall(content.get_url())]
        return ImageEncoding(tokens=tokens, image=np.empty(0))


def _load(file: Path) -> MistralTokenizer:
    try:
        return MistralTokenizer(LoadedTokenizer.from_file(file))
    except Exception as err:  # the libraries raise any kind of error for a broken file
        raise TokenizerLoadError(f"cannot load the tokenizer {file}: {one_line(err)}") from err


def _check_config(config: RendererConfig) -> None:
    if config.chat_template is not None:
        raise TokenizerLoadError(
            "--chat-template cannot be combined with --tokenizer-mode mistral, where mistral-common renders messages: "
            "leave it out, or choose --tokenizer-mode hf"
        )
    if names := sorted(config.default_chat_template_kwargs.keys() - {"reasoning_effort"}):
        logger.warning("--default-chat-template-kwargs: %s has no effect with a Mistral tokenizer", ", ".join(names))


def _check_variables(options: ChatOptions) -> None:
    effort = {"reasoning_effort", "enable_thinking"} if "reasoning_effort" in options.chat_template_kwargs else set()
    if names := sorted(options.chat_template_kwargs.keys() - effort):
        raise RequestError(
            f"chat_template_kwargs is not supported for Mistral tokenizers, got {', '.join(names)}",
            param="chat_template_kwargs",
        )


def _check_last(role: str, options: ChatOptions) -> None:
    """Checks the last message's role, which decides in Mistral's format whether the message is continued."""
    if options.continue_final_message and role != "assistant":
        raise RequestError(
            f"continue_final_message needs a last message of role 'assistant', got {role!r}",
            param="continue_final_message",
        )
    if role == "assistant" and not options.continue_final_message:
        raise RequestError(
            "the last message is of role 'assistant': set continue_final_message to true and add_generation_prompt to "
            "false to have it continued",
            param="messages",
        )


def _to_message(message: Message, checked: Message, placeholders: Iterator[str]) -> Message:
    """Converts the parts and call ids of a message into the form for mistral-common.

    `checked` is the same message after `to_conversation`, which rejects malformed messages.
    """
    role, content = checked["role"], message.get("content")
    if content is None and role != "assistant":
        raise RequestError(f"a message of role {role!r} needs content", param="messages")
    if isinstance(content, list):
        content = [_to_part(part, placeholders) for part in content]
    converted = checked | {"role": "system" if role == "developer" else role, "content": content}
    if role == "tool":
        converted["tool_call_id"] = _to_call_id(message.get("tool_call_id"))
    elif calls := checked.get("tool_calls"):
        converted["tool_calls"] = [_to_call(call) for call in calls]
    return converted


def _to_part(part: Any, placeholders: Iterator[str]) -> Message:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if is_image(part):
        return {"type": "image_url", "image_url": {"url": next(placeholders)}}
    kind = part["type"]
    if kind == "thinking":
        return {"type": kind, "thinking": part["thinking"], "closed": part.get("closed", True)}
    return {"type": "text", "text": part[TEXT_KEYS[kind]]}


def _to_call(call: Message) -> Message:
    function = {"name": call["function"].get("name"), "arguments": call["function"]["arguments"]}
    call_id = _to_call_id(call.get("id"))
    return {"function": function} if call_id is None else {"id": call_id, "function": function}


def _to_call_id(call_id: Any) -> Any:
    return call_id[-_CALL_ID_CHARS:] if isinstance(call_id, str) else call_id


def _texts_of(request: ChatCompletionRequest[Any]) -> Iterator[str]:
    """Yields the texts of the messages: contents, reasoning and arguments of tool calls."""
    for message in request.messages:
        for chunk in [TextChunk(text=message.content)] if isinstance(message.content, str) else message.content or ():
            if not isinstance(chunk, ImageURLChunk):
                yield chunk.thinking if isinstance(chunk, ThinkChunk) else chunk.text
        if isinstance(message, AssistantMessage):
            yield from (call.function.arguments for call in message.tool_calls or ())


def _reason(err: Exception) -> str:
    if isinstance(err, ValidationError):
        return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in err.errors())
    return str(err) or type(err).__name__
