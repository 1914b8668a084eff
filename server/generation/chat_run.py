"""A chat request in the engine, and its output as typed deltas: the base of all APIs that chat.

    run = await runner.start(request, context)             # raises every fault of the request
    async with aclosing(run.stream()) as deltas:            # as the tokens arrive …
        async for delta in deltas:
            for part in delta.parts: …                      # Reasoning, Content and ToolCallPart, in order
    choices = await run.collect()                           # … or each whole choice as one delta
    run.meter.total()                                       # the usage so far

An API with other bodies converts its request into a `ChatRequest` and consumes the deltas.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Literal, NamedTuple
from uuid import uuid4

import msgspec

from server.generation.chat_prompt import render_chat_request
from server.generation.chat_request import ChatRequest
from server.generation.generation import Generation, SequenceDelta
from server.generation.output_parsing import OutputParsing
from server.generation.preparation import GenerationBuilder
from server.generation.streams import collect, generate
from server.generation.usage import UsageMeter
from server.operation.concurrently import take_turns
from server.operation.inference import Inference
from server.operation.request_context import RequestContext
from server.parsers.base import OutputParser
from server.parsers.events import CallArguments, CallStart, Content, Event, Reasoning
from server.renderers.base import PROMPTS_PER_TURN
from server.renderers.prompts import RenderedPrompt

ChatFinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]
"""The last two are raised as errors before a delta is made of them."""


class ToolCallPart(NamedTuple):
    """A part of a tool call; the whole call in the deltas of `ChatRun.collect`."""

    position: int
    """Index among the choice's calls."""
    id: str | None
    """Set in a call's first part only, as is the name."""
    name: str | None
    arguments: str
    """JSON text that continues that of the call's earlier parts."""


Part = Reasoning | Content | ToolCallPart


class ChoiceDelta(NamedTuple):
    """What some tokens add to a choice."""

    choice: int
    parts: list[Part]
    """In the order of the text, adjacent ones of a kind joined; empty if the tokens are only markers, or held
    back."""
    finish_reason: ChatFinishReason | None
    """Set in a choice's last delta."""
    sequence: SequenceDelta
    """The tokens with their ids, log-probabilities and `stop_reason`; its text is not parsed."""

    @property
    def reasoning(self) -> str:
        """The text of all parts of reasoning."""
        return "".join(part.text for part in self.parts if isinstance(part, Reasoning))

    @property
    def content(self) -> str:
        """The text of all parts of content."""
        return "".join(part.text for part in self.parts if isinstance(part, Content))

    @property
    def tool_calls(self) -> list[ToolCallPart]:
        """The parts of tool calls."""
        return [part for part in self.parts if isinstance(part, ToolCallPart)]


class ChatRunner:
    """Starts chat requests; one per server."""

    def __init__(self, inference: Inference, builder: GenerationBuilder, parsing: OutputParsing) -> None:
        self._inference = inference
        self._builder = builder
        self._parsing = parsing

    async def start(self, request: ChatRequest, context: RequestContext, *, id_prefix: str = "chatcmpl") -> "ChatRun":
        """Renders and prepares the request; the engine receives it with the first use of the run.

        Raises:
            RequestError: the request is invalid.
        """
        return await self.start_batch([request], context, id_prefix=id_prefix)

    async def start_batch(
        self, requests: Sequence[ChatRequest], context: RequestContext, *, id_prefix: str = "chatcmpl"
    ) -> "ChatRun":
        """Starts several conversations, which differ in their messages only, as one run.

        The choices of the first conversation come first.

        Raises:
            RequestError: a request is invalid.
        """
        request = requests[0]
        self._inference.models.check(request.model)
        self._parsing.check(request)
        with context.times.rendering():
            prompts: list[RenderedPrompt] = []
            for begin in range(0, len(requests), PROMPTS_PER_TURN):
                some = requests[begin : begin + PROMPTS_PER_TURN]
                prompts += await asyncio.gather(*(render_chat_request(self._inference, each, context) for each in some))
        if self._parsing.keeps_special_tokens(request):
            request = msgspec.structs.replace(request, skip_special_tokens=False)
        run_unless = self._inference.renderer.run_unless
        strict = await run_unless(context.is_small, self._parsing.find_constraint, request)
        generation = await self._builder.build(request, prompts, context, id_prefix=id_prefix, strict_tools=strict)
        return ChatRun(self._inference, generation, self._parsing)


class ChatRun:
    """One chat request; use either `stream` or `collect`, once, on the event loop."""

    def __init__(self, inference: Inference, generation: Generation, parsing: OutputParsing) -> None:
        request = generation.request
        assert isinstance(request, ChatRequest)
        self.request = request
        self.generation = generation
        self.hides_tokens = parsing.hides_tokens(request)
        """Whether ids and log-probabilities must not be shown."""
        self.meter = UsageMeter(
            generation,
            has_prompt_details=inference.config.enable_prompt_tokens_details,
            has_reasoning_details=inference.config.reasoning_parser is not None,
        )
        self._inference = inference
        self._parsing = parsing

    @property
    def id(self) -> str:
        """The request's id in the response."""
        return self.generation.request_id

    @property
    def prompt(self) -> RenderedPrompt:
        """The rendered conversation, of a batch the first one."""
        return self.generation.prompts[0]

    @property
    def num_choices(self) -> int:
        """Number of choices."""
        return self.generation.num_choices

    async def stream(self) -> AsyncGenerator[ChoiceDelta, None]:
        """Yields the deltas of all choices as they arrive; closing the generator aborts the request.

        Raises:
            EngineError: the engine failed.
        """
        readers = self._create_readers(is_whole=False)
        async with aclosing(generate(self._inference, self.generation)) as deltas:
            async for delta in deltas:
                yield self._read(delta, readers)

    async def collect(self) -> list[ChoiceDelta]:
        """Runs the request to its end; returns one delta per choice.

        Raises:
            EngineError: the engine failed.
        """
        deltas = await collect(self._inference, self.generation)
        readers = self._create_readers(is_whole=True)
        return [self._read(delta, readers) async for delta in take_turns(deltas)]

    def _create_readers(self, *, is_whole: bool) -> "ChoiceReaders":
        """One reader per choice. With `is_whole`, each reads its whole choice as one delta."""
        create = partial(self._parsing.create_parser, self.request, is_whole=is_whole)
        return ChoiceReaders(lambda index: ChoiceReader(self.request, create(self.generation.reasoning_of(index))))

    def _read(self, delta: SequenceDelta, readers: "ChoiceReaders") -> ChoiceDelta:
        """Parses a delta and counts its tokens."""
        self.meter.add(delta)
        return readers[delta.choice].read(delta)


class ChoiceReaders(dict[int, "ChoiceReader"]):
    """Each is created with its choice's first delta: a request may have thousands of choices."""

    def __init__(self, create: "Callable[[int], ChoiceReader]") -> None:
        super().__init__()
        self._create = create

    def __missing__(self, index: int) -> "ChoiceReader":
        reader = self[index] = self._create(index)
        return reader


class ChoiceReader:
    """Parses one choice and numbers its calls."""

    def __init__(self, request: ChatRequest, parser: OutputParser | None) -> None:
        self._parser = parser
        self._is_named = request.named_function is not None
        self._hides_reasoning = not request.include_reasoning
        self._is_single = request.parallel_tool_calls is False
        self._num_calls = 0

    def read(self, delta: SequenceDelta) -> ChoiceDelta:
        """The choice's next parts."""
        is_last = delta.finish_reason is not None
        if self._parser is None:
            parts: list[Part] = [Content(delta.text)]
        else:
            events = self._parser.feed(delta.text, delta.token_ids)
            parts = _join(self._number([*events, *self._parser.finish()] if is_last else events))
        return ChoiceDelta(delta.choice, parts, self._finish_reason(delta), delta)

    def _number(self, events: list[Event]) -> list[Part]:
        """Gives calls their index and id; drops all but the first if the request forbids parallel calls."""
        parts: list[Part] = []
        for event in events:
            if isinstance(event, CallStart):
                call_id = event.id or f"chatcmpl-tool-{uuid4().hex}"
                parts.append(ToolCallPart(self._num_calls, call_id, event.name, ""))
                self._num_calls += 1
            elif isinstance(event, Reasoning) and self._hides_reasoning:
                continue
            elif isinstance(event, CallArguments):
                parts.append(ToolCallPart(self._num_calls - 1, None, None, event.text))
            else:
                parts.append(event)
        if self._is_single:
            return [part for part in parts if not isinstance(part, ToolCallPart) or part.position == 0]
        return parts

    def _finish_reason(self, delta: SequenceDelta) -> ChatFinishReason | None:
        """As OpenAI: `tool_calls` if the model chose the tool, `stop` if the request named it."""
        if delta.finish_reason == "stop" and self._num_calls and not self._is_named:
            return "tool_calls"
        return delta.finish_reason


def _join(parts: list[Part]) -> list[Part]:
    """Joins adjacent parts of a kind: some clients read only the first part of a call in a chunk."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, ToolCallPart):
            if isinstance(last, ToolCallPart) and last.position == part.position:
                joined[-1] = last._replace(arguments=last.arguments + part.arguments)
                continue
        elif type(last) is type(part):
            joined[-1] = part._replace(text=last.text + part.text)
            continue
        joined.append(part)
    return joined
