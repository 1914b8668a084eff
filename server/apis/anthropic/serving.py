"""Answers /v1/messages with the output of a `ChatRun`, and /v1/messages/count_tokens."""

import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any, Final, get_args
from uuid import uuid4

from base.errors import RequestError
from server.apis.anthropic.conversion import to_chat_request
from server.apis.anthropic.messages_request import AnthropicRequest, CountTokensRequest, Effort, ThinkingDisabled
from server.generation.chat import ChatRun, ChatRunner, ChoiceDelta, Part, chat_options, render_chat_request
from server.generation.generation_request import ChatRequest, ReasoningEffort
from server.operation.admission import RequestContext
from server.operation.models import Inference
from server.terms.http_body.request_body import field_names
from server.terms.http_body.response_body import ANTHROPIC, encode_named_event, end_stream
from server.text.parsers.json_text import read_json
from server.text.parsers.output_parser import Content, Reasoning
from server.text.renderers.prompts import ChatOptions

logger = logging.getLogger(__name__)
_FIELDS: Final = {"thinking_token_budget": "thinking", "stop": "stop_sequences", "image_url": "image"}
"""Field of a chat request -> field of a request to /v1/messages."""
_HI: Final = [{"role": "user", "content": "Hi"}]
_TOOL: Final = {"type": "function", "function": {"name": "t", "parameters": {"type": "object", "properties": {}}}}

StreamEvent = dict[str, Any]


class AnthropicServing:
    """Serves Anthropic's API. A server has one such object. Every method runs on the event loop."""

    def __init__(self, inference: Inference, runner: ChatRunner) -> None:
        self._inference = inference
        self._runner = runner
        self._probe = TemplateProbe(inference)

    async def create(
        self, request: AnthropicRequest, context: RequestContext
    ) -> dict[str, Any] | AsyncGenerator[bytes, None]:
        """Generates a message, or a stream of events."""
        with field_names(_FIELDS):
            chat = await self._convert(request, context)
            message = _Message(self._inference, await self._runner.start(chat, context))
        return end_stream(message.stream(), ANTHROPIC) if request.stream else await message.complete()

    async def count_tokens(self, request: CountTokensRequest, context: RequestContext) -> dict[str, Any]:
        """Counts the tokens of the conversation's prompt. Ignores `context_management`."""
        chat = await self._convert(request, context)
        with field_names(_FIELDS), context.times.rendering():
            prompt = await render_chat_request(self._inference, chat, context)
        num_tokens = len(prompt.token_ids)
        return {"input_tokens": num_tokens, "context_management": {"original_input_tokens": num_tokens}}

    async def _convert(self, request: CountTokensRequest, context: RequestContext) -> ChatRequest:
        """Converts a request into a chat request with the same meaning."""
        self._inference.models.check_generative("Messages", request.model)
        has_later_system = any(message.role == "system" for message in request.messages)
        merges_system = has_later_system and await self._probe.merges_system()
        is_disabled = isinstance(request.thinking, ThinkingDisabled)
        effort = await self._probe.disabled_effort() if is_disabled else "none"
        chat = await self._inference.renderer.pools.run_unless(
            context.is_small, to_chat_request, request, merges_system=merges_system, disabled_effort=effort
        )
        context.hold(chat)
        return chat


class _Message:
    """Writes the response of one request."""

    def __init__(self, inference: Inference, run: ChatRun) -> None:
        self._run = run
        self._model = inference.models.default_name
        self._has_prefix_cache = inference.engine.info.has_prefix_cache

    async def complete(self) -> dict[str, Any]:
        """Returns the complete message: reasoning, text and calls."""
        (choice,) = await self._run.collect()
        blocks = BlockStream()
        parts: list[Part] = [Reasoning(choice.reasoning), Content(choice.content), *choice.tool_calls]
        for part in parts:
            _add(blocks, part)
        blocks.close()
        stop = blocks.stop(choice.finish_reason, choice.sequence.stop_reason)
        content = blocks.blocks or [{"type": "text", "text": ""}]
        return self._body(content, stop, self._usage())

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yields the message as events. The opening events are sent together with the first token."""
        blocks = BlockStream()
        opening: list[StreamEvent] = [self._start()]
        last: ChoiceDelta | None = None
        async with aclosing(self._run.stream()) as deltas:
            async for delta in deltas:
                last = delta
                events = [*opening, *(event for part in delta.parts for event in _add(blocks, part))]
                opening = []
                if events:
                    yield _encode(events)
        assert last is not None
        closing = blocks.close()
        stop = blocks.stop(last.finish_reason, last.sequence.stop_reason)
        end = {"type": "message_delta", "delta": stop, "usage": self._usage()}
        yield _encode([*opening, *closing, end, {"type": "message_stop"}])

    def _start(self) -> StreamEvent:
        usage = {"input_tokens": self._run.generation.num_prompt_tokens, "output_tokens": 0}
        message = self._body([], {"stop_reason": None, "stop_sequence": None}, usage)
        return {"type": "message_start", "message": message}

    def _body(self, content: list[dict[str, Any]], stop: dict[str, Any], usage: dict[str, int]) -> dict[str, Any]:
        head = {
            "id": self._run.generation.request_id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self._model,
        }
        return head | stop | {"usage": usage}

    def _usage(self) -> dict[str, int]:
        """Returns the token counts. `--enable-prompt-tokens-details` adds the cached tokens, as for chats."""
        total = self._run.meter.total()
        if (details := total.prompt_tokens_details) is None:
            return {"input_tokens": total.prompt_tokens, "output_tokens": total.completion_tokens}
        num_new = total.prompt_tokens - details["cached_tokens"]
        num_cached = num_new if self._has_prefix_cache else 0
        return {
            "input_tokens": num_new - num_cached,
            "output_tokens": total.completion_tokens,
            "cache_creation_input_tokens": num_cached,
            "cache_read_input_tokens": details["cached_tokens"],
        }


class BlockStream:
    """Writes the content blocks of one message. Each method returns the events that it adds to the stream.

    Text that arrives within a call is held back until the call ends, because more arguments may follow.
    """

    def __init__(self) -> None:
        self.blocks: list[dict[str, Any]] = []
        """The blocks so far. The last block has no content while it is open."""
        self._open: str | None = None
        """The type of the open block. None if no block is open."""
        self._texts: list[str] = []
        self._held: list[str] = []
        self.has_calls = False
        self.is_call_complete = False
        """Whether the last call that ended has complete arguments."""

    def add_thinking(self, text: str) -> list[StreamEvent]:
        events = self._open_block({"type": "thinking", "thinking": ""})
        return [*events, self._add({"type": "thinking_delta", "thinking": text}, text)]

    def add_text(self, text: str) -> list[StreamEvent]:
        if self._open == "tool_use":
            self._held.append(text)
            return []
        events = self._open_block({"type": "text", "text": ""})
        return [*events, self._add({"type": "text_delta", "text": text}, text)]

    def add_call(self, call_id: str, name: str) -> list[StreamEvent]:
        """Opens a new call, which has no arguments yet."""
        self.has_calls = True
        events = self.close()
        return events + self._open_block({"type": "tool_use", "id": call_id, "name": name, "input": {}})

    def add_arguments(self, text: str) -> list[StreamEvent]:
        return [self._add({"type": "input_json_delta", "partial_json": text}, text)]

    def close(self) -> list[StreamEvent]:
        """Ends the open block, then adds the held-back text as a block of its own."""
        held, self._held = "".join(self._held), []
        events = self._close_block()
        return [*events, *self.add_text(held), *self._close_block()] if held else events

    def stop(self, finish_reason: str | None, stop_reason: int | str | None) -> dict[str, str | None]:
        """Returns why the message ends. If a stop sequence has cut off a call, the sequence is the reason."""
        sequence = None
        reason: str | None = "tool_use" if self.has_calls or finish_reason == "tool_calls" else "end_turn"
        if finish_reason == "length":
            reason = "max_tokens"
        elif finish_reason not in ("stop", "tool_calls"):
            reason = None
        elif isinstance(stop_reason, str) and not self.is_call_complete:
            reason, sequence = "stop_sequence", stop_reason
        return {"stop_reason": reason, "stop_sequence": sequence}

    def _open_block(self, block: dict[str, Any]) -> list[StreamEvent]:
        if self._open == block["type"]:
            return []
        events = self.close()
        self._open = block["type"]
        self.blocks.append(block)
        return [*events, self._event("content_block_start", content_block=block)]

    def _close_block(self) -> list[StreamEvent]:
        if self._open is None:
            return []
        events, text = [], "".join(self._texts)
        whole: dict[str, Any] = {"text": text}
        if self._open == "thinking":
            whole = {"thinking": text, "signature": uuid4().hex}  # clients send the signature back; nothing checks it
            delta = {"type": "signature_delta", "signature": whole["signature"]}
            events.append(self._event("content_block_delta", delta=delta))
        elif self._open == "tool_use":
            arguments = _parse_arguments(text)
            self.is_call_complete = arguments is not None
            whole = {"input": arguments or {}}
        self.blocks[-1] = self.blocks[-1] | whole
        self._open, self._texts = None, []
        return [*events, self._event("content_block_stop")]

    def _add(self, delta: dict[str, Any], text: str) -> StreamEvent:
        self._texts.append(text)
        return self._event("content_block_delta", delta=delta)

    def _event(self, type: str, **fields: Any) -> StreamEvent:
        return {"type": type, **fields, "index": len(self.blocks) - 1}


def _parse_arguments(text: str) -> dict[str, Any] | None:
    """Returns the arguments of a call. None if the text is not a complete JSON object."""
    try:
        arguments = read_json(text)
    except ValueError:
        return None
    return arguments if isinstance(arguments, dict) else None


def _add(blocks: BlockStream, part: Part) -> list[StreamEvent]:
    """Adds one part of the output to the blocks. Returns the events of the part."""
    if isinstance(part, Reasoning):
        return blocks.add_thinking(part.text) if part.text else []
    if isinstance(part, Content):
        return blocks.add_text(part.text) if part.text else []
    events = [] if part.name is None else blocks.add_call(str(part.id), part.name)
    return [*events, *blocks.add_arguments(part.arguments)] if part.arguments else events


def _encode(events: Iterable[StreamEvent]) -> bytes:
    return b"".join(encode_named_event(event) for event in events)


_SYSTEM_TWICE: Final = [{"role": role, "content": "t"} for role in ("system", "user", "system", "user")]


class TemplateProbe:
    """Renders test conversations to find out what the chat template supports. A server has one probe."""

    def __init__(self, inference: Inference) -> None:
        self._config = inference.config
        self._renderer = inference.renderer
        effort = inference.config.generation.anthropic_disabled_thinking_effort
        self._disabled_effort: ReasoningEffort | None = None if effort == "auto" else effort
        self._merges_system: bool | None = None

    async def merges_system(self) -> bool:
        """Whether system messages must be moved to the start, because the template rejects them elsewhere."""
        if self._merges_system is None:
            self._merges_system = await self._rejects_later_system()
            if self._merges_system:
                logger.warning(
                    "the chat template accepts system messages only at the start: /v1/messages moves later ones there"
                )
                logger.warning(
                    "each moved system message makes the engine compute the whole prompt again. "
                    "A --chat-template that accepts them anywhere avoids this"
                )
        return self._merges_system

    async def disabled_effort(self) -> ReasoningEffort:
        """Returns the `reasoning_effort` for disabled thinking.

        Unless the operator has set it, this is `low` if the template ignores or rejects `none`.
        """
        if self._disabled_effort is None:
            self._disabled_effort = await self._find_disabled_effort()
            logger.info("disabled thinking in /v1/messages is reasoning_effort '%s'", self._disabled_effort)
        return self._disabled_effort

    async def _rejects_later_system(self) -> bool:
        for tools in (None, [_TOOL]):  # some models have one template with and one without tools
            options = ChatOptions(add_generation_prompt=False, tools=tools)
            if await self._render(_SYSTEM_TWICE, options) is None:
                return True
        return False

    async def _find_disabled_effort(self) -> ReasoningEffort:
        prompt = await self._render_effort("none")
        if prompt is None or any([await self._render_effort(effort) == prompt for effort in get_args(Effort)]):
            return "low"
        return "none"

    async def _render_effort(self, effort: ReasoningEffort) -> list[int] | None:
        request = ChatRequest(messages=_HI, reasoning_effort=effort)
        return await self._render(_HI, chat_options(request, self._config.generation))

    async def _render(self, messages: list[dict[str, Any]], options: ChatOptions) -> list[int] | None:
        try:
            return (await self._renderer.pools.run(self._renderer.render_chat, messages, options)).token_ids
        except RequestError:
            return None
