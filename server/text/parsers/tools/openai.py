"""Parses gpt-oss's messages with openai_harmony: `<|channel|>analysis<|message|>…<|end|>`."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from openai_harmony import (
    HarmonyEncodingName,
    HarmonyError,
    Role,
    StreamableParser,
    load_harmony_encoding,
)

from server.text.parsers.base import (
    CallArguments,
    CallFormat,
    CallStart,
    Content,
    Event,
    FunctionSignature,
    OutputParser,
    PromptEnd,
    Reasoning,
)

_MESSAGE: Final = 200008
"""The token `<|message|>`, which begins the text of a message."""

_ENCODING: Final = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
"""gpt-oss's vocabulary. Loading takes half a second, so this happens at import and not at a request."""

_END_TOKENS: Final = frozenset(_ENCODING.stop_tokens())

_BUILT_IN_TOOLS: Final = ("python", "browser", "container")

_Text = Reasoning | Content | CallArguments


class HarmonyParser:
    """Finds reasoning, content and calls. Drops text that is addressed to other tools than functions."""

    needs_special_tokens: ClassVar[bool] = True
    call_format: ClassVar[CallFormat | None] = None

    def __init__(self, functions: Sequence[FunctionSignature]) -> None:
        self._parser = StreamableParser(_ENCODING, role=Role.ASSISTANT)
        self._is_in_text = False
        self._kind: type[_Text] | None = None
        """The kind of event for the open message's text. None if the text is dropped."""
        self._header: list[int] = []
        """The tokens of the open message before its text."""

    def feed(self, text: str, token_ids: Sequence[int]) -> list[Event]:
        """Returns the events that the tokens complete. Does not use `text`."""
        return [event for token_id in token_ids for event in self._read(token_id)]

    def finish(self) -> list[Event]:
        """Turns the tokens of a message that has no text yet into content."""
        return [Content(_ENCODING.decode(self._header))] if self._header else []

    def _read(self, token_id: int) -> list[Event]:
        try:
            self._parser.process(token_id)
        except HarmonyError:
            malformed = [*self._header, token_id]
            self._header.clear()
            return [Content(_ENCODING.decode(malformed))]
        if self._is_in_text:
            return self._read_text(token_id)
        self._header.append(token_id)
        return self._begin_text() if token_id == _MESSAGE else []

    def _begin_text(self) -> list[Event]:
        self._is_in_text = True
        self._header.clear()
        channel = self._parser.current_channel
        recipient = (self._parser.current_recipient or "").partition("<|constrain|>")[0].rstrip()
        self._kind = _kind_of_text(channel, recipient)
        return [CallStart(recipient.removeprefix("functions."))] if self._kind is CallArguments else []

    def _read_text(self, token_id: int) -> list[Event]:
        self._is_in_text = token_id not in _END_TOKENS
        added = self._parser.last_content_delta if self._is_in_text else None
        return [self._kind(added)] if added and self._kind else []


def _kind_of_text(channel: str | None, recipient: str) -> type[_Text] | None:
    if _is_function(recipient):
        return CallArguments
    if channel == "analysis":
        return Reasoning
    return Content if channel == "final" or (channel == "commentary" and not recipient) else None


def _is_function(recipient: str) -> bool:
    if not recipient or recipient.startswith("<|") or recipient in ("assistant", "functions."):
        return False
    return recipient.split(".", 1)[0] not in _BUILT_IN_TOOLS


class GptOssFormat:
    """A `ReasoningFormat`. Its reasoning has no budget, as in vLLM, because calls may be a part of it."""

    starts: ClassVar[tuple[str, ...]] = ("<|channel|>analysis<|message|>",)
    ends: ClassVar[tuple[str, ...]] = ("<|channel|>final<|message|>", "<|channel|>final <|constrain|>json<|message|>")
    pauses: ClassVar[tuple[str, ...]] = ("<|end|>",)
    answer_starts: ClassVar[tuple[str, ...]] = ()
    forced_end: ClassVar[str | None] = None
    is_open_at_start: ClassVar[bool] = False
    parses_calls: ClassVar[bool] = True

    def is_used(self, template_kwargs: Mapping[str, Any]) -> bool:
        return True

    def create_parser(self, prompt_end: PromptEnd, *, drops_answer_starts: bool = False) -> OutputParser:
        return HarmonyParser([])


GPT_OSS: Final = GptOssFormat()
