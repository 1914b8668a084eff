"""Runs a chat request of any API in the engine, and returns its output as typed deltas.

    run = await runner.start(request, context)             # raises every fault of the request
    async with aclosing(run.stream()) as deltas:            # as the tokens arrive …
        async for delta in deltas:
            for part in delta.parts: …                      # Reasoning, Content and ToolCallPart, in order
    choices = await run.collect()                           # … or each whole choice as one delta
    run.meter.total()                                       # the usage so far

An API with other request bodies converts its request into a `ChatRequest` and consumes the deltas.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import groupby
from typing import Literal, NamedTuple
from uuid import uuid4

import msgspec

from base.errors import RequestError
from server.generation.generation import Generation, GenerationBuilder, SequenceDelta
from server.generation.generation_request import ChatRequest, shown_tools
from server.generation.guided import Constraint, find_strict_constraint
from server.generation.reasoning import (
    ModelReasoning,
    PromptReasoning,
    choose_detected,
    read_model_facts,
    read_model_type,
)
from server.generation.sequences import UsageMeter, collect, generate
from server.operation.admission import RequestContext
from server.operation.models import Inference
from server.terms.concurrency import take_turns
from server.terms.server_config import AUTO, GenerationConfig
from server.text.parsers.detection import FALLBACK, detect_tool_format
from server.text.parsers.formats import FORCED, TOOL_FORMATS, ToolFormat
from server.text.parsers.output_parser import (
    CallArguments,
    CallStart,
    Content,
    Event,
    OutputParser,
    PromptEnd,
    Reasoning,
)
from server.text.renderers.prompts import ChatOptions, ProcessedImages, RenderedPrompt
from server.text.renderers.renderer import Renderer
from server.text.renderers.tokenizers.tokenizer import Tokenizer

ChatFinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]
"""`abort` and `error` are raised as errors, so they do not occur in deltas."""


class ToolCallPart(NamedTuple):
    """A part of a tool call. In the deltas of `ChatRun.collect`, each part is a whole call."""

    position: int
    """The index of the call among the choice's calls."""
    id: str | None
    """The call's id. Like `name`, it is set only in the first part of a call."""
    name: str | None
    arguments: str
    """JSON text that continues the earlier parts of this call."""


Part = Reasoning | Content | ToolCallPart


class ChoiceDelta(NamedTuple):
    """The next part of a choice's output, from one or more tokens."""

    choice: int
    parts: list[Part]
    """The parts in the order of the text. Adjacent parts of the same kind are joined.

    The list is empty if the tokens are only markers or are held back.
    """
    finish_reason: ChatFinishReason | None
    """Set only in a choice's last delta."""
    sequence: SequenceDelta
    """The delta before parsing, with token ids, log-probabilities and `stop_reason`."""

    @property
    def reasoning(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Reasoning))

    @property
    def content(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Content))

    @property
    def tool_calls(self) -> list[ToolCallPart]:
        return [part for part in self.parts if isinstance(part, ToolCallPart)]


class ChatRunner:
    """Starts chat requests. A server has one such object."""

    def __init__(self, inference: Inference, builder: GenerationBuilder, parsing: "OutputParsing") -> None:
        self._inference = inference
        self._builder = builder
        self._parsing = parsing

    async def start(self, request: ChatRequest, context: RequestContext, *, id_prefix: str = "chatcmpl") -> "ChatRun":
        """Renders and prepares a request. The engine receives it when the run is first used.

        Raises:
            RequestError: the request is invalid.
        """
        self._parsing.check(request)
        renderer = self._inference.renderer
        with context.times.rendering():
            images = await renderer.load_images(request.messages, context.lease)
            generation = await renderer.pools.run(self._build, request, images, context, id_prefix=id_prefix)
        self._builder.admit(generation)
        return ChatRun(self._inference, generation, self._parsing)

    def _build(
        self, request: ChatRequest, images: ProcessedImages | None, context: RequestContext, *, id_prefix: str
    ) -> Generation:
        """Does all blocking work in one call in the renderer pool."""
        prompt = _render(self._inference, request, images)
        if self._parsing.keeps_special_tokens(request):
            request = msgspec.structs.replace(request, skip_special_tokens=False)
        strict = self._parsing.find_constraint(request)
        return self._builder.build(request, [prompt], context, id_prefix=id_prefix, strict_tools=strict)


class ChatRun:
    """One chat request. Call either `stream` or `collect`, and only once. Both run on the event loop."""

    def __init__(self, inference: Inference, generation: Generation, parsing: "OutputParsing") -> None:
        request = generation.request
        assert isinstance(request, ChatRequest)
        self.request = request
        self.generation = generation
        self.hides_tokens = parsing.hides_tokens(request)
        """Whether token ids and log-probabilities must not be shown."""
        self.meter = UsageMeter(generation, inference.config.generation)
        self._inference = inference
        self._parsing = parsing
        self._readers: dict[int, ChoiceReader] = {}
        """Choice -> reader. Readers are created when their choices begin, because there may be thousands."""

    async def stream(self) -> AsyncGenerator[ChoiceDelta, None]:
        """Yields the deltas of all choices as they arrive. Close the generator to abort the request.

        Raises:
            EngineError: the engine failed.
        """
        async with aclosing(generate(self._inference, self.generation)) as deltas:
            async for delta in deltas:
                yield self._read(delta)

    async def collect(self) -> list[ChoiceDelta]:
        """Runs the request to its end. Returns one delta for each choice.

        Raises:
            EngineError: the engine failed.
        """
        deltas = await collect(self._inference, self.generation)
        return [self._read(delta) async for delta in take_turns(deltas)]

    def _read(self, delta: SequenceDelta) -> ChoiceDelta:
        self.meter.add(delta)
        reader = self._readers.get(delta.choice)
        if reader is None:
            reasoning = self.generation.reasoning_of(delta.choice)
            parser = self._parsing.create_parser(self.request, reasoning)
            reader = self._readers[delta.choice] = ChoiceReader(self.request, parser)
        return reader.read(delta)


async def render_chat_request(inference: Inference, request: ChatRequest, context: RequestContext) -> RenderedPrompt:
    """Renders the prompt of a request. Raises RequestError if the conversation is invalid."""
    renderer = inference.renderer
    images = await renderer.load_images(request.messages, context.lease)
    return await renderer.pools.run(_render, inference, request, images)


def _render(inference: Inference, request: ChatRequest, images: ProcessedImages | None) -> RenderedPrompt:
    options = chat_options(request, inference.config.generation)
    return inference.renderer.render_chat(request.messages, options, images)


def chat_options(request: ChatRequest, config: GenerationConfig) -> ChatOptions:
    """Returns the renderer's options for a chat request."""
    is_without_tools = config.exclude_tools_when_tool_choice_none and request.tool_choice == "none"
    return ChatOptions(
        add_generation_prompt=request.opens_message,
        continue_final_message=request.continue_final_message,
        tools=None if is_without_tools else shown_tools(request.tools),
        documents=request.documents,
        chat_template_kwargs=request.template_kwargs,
        add_special_tokens=request.add_special_tokens,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
    )


class OutputParsing:
    """Creates the parsers that the server's flags name. A server has one such object."""

    def __init__(self, config: GenerationConfig, renderer: Renderer, reasoning: ModelReasoning | None) -> None:
        self._reasoning = reasoning
        self._tools: ToolFormat | None = None
        self._trigger_id: int | None = None
        if config.enable_auto_tool_choice and config.tool_call_parser is not None:
            name = config.tool_call_parser
            self._tools = _detect_tools(renderer) if name == AUTO else TOOL_FORMATS[name]
            if self._tools.call_format is not None:
                self._trigger_id = _find_special_token(self._tools.call_format.trigger, renderer.tokenizer)
        self._accepts_auto = self._tools is not None or read_model_type(renderer) == "gpt_oss"

    def check(self, request: ChatRequest) -> None:
        """Raises RequestError if the model may choose tools but no parser can read its calls.

        As in vLLM, nothing is checked for gpt-oss. Calls then become content.
        """
        if request.tool_choice == "auto" and not self._accepts_auto:
            raise RequestError(
                '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
                param="tool_choice",
            )

    def keeps_special_tokens(self, request: ChatRequest) -> bool:
        """Whether the parsers need the text of special tokens."""
        if self._reasoning is not None and self._reasoning.keeps_special_tokens:
            return True
        tools = self._chosen_calls(request)
        return tools is not None and tools.needs_special_tokens

    def hides_tokens(self, request: ChatRequest) -> bool:
        """Whether token ids and log-probabilities are left out, as they would reveal hidden reasoning."""
        has_parser = self._reasoning is not None or self._tools is not None
        return not request.include_reasoning and has_parser

    def find_constraint(self, request: ChatRequest) -> Constraint | None:
        """Returns the grammar of calls. None if no tool is strict, or the format has no grammar."""
        tools = self._chosen_calls(request)
        if tools is None or tools.call_format is None:
            return None
        return find_strict_constraint(request, tools.call_format, trigger_id=self._trigger_id)

    def create_parser(self, request: ChatRequest, reasoning: PromptReasoning | None) -> OutputParser | None:
        """Creates the parser of one choice. Returns None if the whole text is content."""
        tools = FORCED if request.tool_choice == "required" else self._chosen_calls(request)
        if tools is None and reasoning is None and request.named_function is None:
            return None
        return OutputParser(
            {tool.function.name: tool.function.parameters for tool in request.tools or ()},
            tools=tools,
            reasoning=reasoning.format if reasoning else None,
            prompt_end=reasoning.prompt_end if reasoning else PromptEnd.SILENT,
            named_function=request.named_function,
        )

    def _chosen_calls(self, request: ChatRequest) -> ToolFormat | None:
        """Returns the format of calls that the model chooses to make. None if it may choose none."""
        return self._tools if request.tools and request.tool_choice in ("auto", None) else None


def _detect_tools(renderer: Renderer) -> ToolFormat:
    facts = read_model_facts(renderer)
    found = choose_detected(
        "--tool-call-parser", facts.own_formats()[0], detect_tool_format(facts), TOOL_FORMATS, f"{FALLBACK} is used"
    )
    return found or TOOL_FORMATS[FALLBACK]


def _find_special_token(text: str, tokenizer: Tokenizer) -> int | None:
    """Returns the special token with this text. None if the text is not a special token."""
    token_ids = [token_id for token_id, token in tokenizer.added_tokens.items() if token == text]
    is_special = bool(token_ids) and not tokenizer.decode(token_ids[:1], skip_special_tokens=True)
    return token_ids[0] if is_special else None


class ChoiceReader:
    """Parses one choice and numbers its calls."""

    def __init__(self, request: ChatRequest, parser: OutputParser | None) -> None:
        self._parser = parser
        self._is_named = request.named_function is not None
        self._hides_reasoning = not request.include_reasoning
        self._is_single = request.parallel_tool_calls is False
        self._num_calls = 0

    def read(self, delta: SequenceDelta) -> ChoiceDelta:
        is_last = delta.finish_reason is not None
        if self._parser is None:
            parts: list[Part] = [Content(delta.text)]
        else:
            events = self._parser.feed(delta.text)
            parts = _join(self._number([*events, *self._parser.finish()] if is_last else events))
        return ChoiceDelta(delta.choice, parts, self._finish_reason(delta), delta)

    def _number(self, events: list[Event]) -> list[Part]:
        """Gives calls an index and an id. Keeps only the first call if the request forbids parallel calls."""
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
        """Returns the delta's finish reason. It follows OpenAI's API if the output ends with a call.

        The reason is `tool_calls` if the model chose the tool, and `stop` if the request named the tool.
        """
        if delta.finish_reason == "stop" and self._num_calls and not self._is_named:
            return "tool_calls"
        return delta.finish_reason


def _join(parts: list[Part]) -> list[Part]:
    """Joins adjacent parts of the same kind. Some clients read only the first part of a call in a chunk."""
    joined: list[Part] = []
    for _, group in groupby(parts, lambda part: part.position if isinstance(part, ToolCallPart) else type(part)):
        first, *others = group
        text = "".join(part[-1] or "" for part in (first, *others))
        if isinstance(first, ToolCallPart):
            joined.append(first._replace(arguments=text))
        else:
            joined.append(first._replace(text=text))
    return joined
