"""A chat request in the engine, and its output as typed deltas: the base of all APIs that chat.

    run = await runner.start(request, context)             # raises every fault of the request
    async with aclosing(run.stream()) as deltas:            # as the tokens arrive …
        async for delta in deltas:
            for part in delta.parts: …                      # Reasoning, Content and ToolCallPart, in order
    choices = await run.collect()                           # … or each whole choice as one delta
    run.meter.total()                                       # the usage so far

An API with other bodies converts its request into a `ChatRequest` and consumes the deltas.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from base.errors import RequestError
from server.generation.chat_request import ChatRequest, shown_tools
from server.generation.generation import Generation, GenerationBuilder, SequenceDelta
from server.generation.output_parsing import ChoiceDelta, ChoiceReader, OutputParsing
from server.generation.sequences import collect, generate
from server.generation.usage import UsageMeter
from server.operation.concurrently import take_turns
from server.operation.inference import Inference
from server.operation.request_context import RequestContext
from server.renderers.images.processor_cache import ProcessedImages
from server.renderers.prompts import ChatOptions, RenderedPrompt
from server.server_config import GenerationConfig


class ChatRunner:
    """Starts chat requests; one per server."""

    def __init__(self, inference: Inference, builder: GenerationBuilder, parsing: OutputParsing) -> None:
        self._inference = inference
        self._builder = builder
        self._parsing = parsing

    async def start(self, request: ChatRequest, context: RequestContext, *, id_prefix: str = "chatcmpl") -> "ChatRun":
        """Renders and prepares a request; the engine receives it with the first use of the run.

        Raises:
            RequestError: the request is invalid.
        """
        self._parsing.check(request)
        renderer = self._inference.renderer
        with context.times.rendering():
            images = await renderer.load_images(request.messages, context.lease)
            generation = await renderer.run_in_pool(self._build, request, images, context, id_prefix=id_prefix)
        self._builder.admit(generation)
        return ChatRun(self._inference, generation, self._parsing)

    def _build(
        self, request: ChatRequest, images: ProcessedImages | None, context: RequestContext, *, id_prefix: str
    ) -> Generation:
        """Everything that blocks, in one call in the renderer pool."""
        prompt = _render(self._inference, request, images)
        if self._parsing.keeps_special_tokens(request):
            request = msgspec.structs.replace(request, skip_special_tokens=False)
        strict = self._parsing.find_constraint(request)
        return self._builder.build(request, [prompt], context, id_prefix=id_prefix, strict_tools=strict)


class ChatRun:
    """One chat request; use either `stream` or `collect`, once, on the event loop."""

    def __init__(self, inference: Inference, generation: Generation, parsing: OutputParsing) -> None:
        request = generation.request
        assert isinstance(request, ChatRequest)
        self.request = request
        self.generation = generation
        self.hides_tokens = parsing.hides_tokens(request)
        """Whether ids and log-probabilities must not be shown."""
        self.meter = UsageMeter(generation, inference.config.generation)
        self._inference = inference
        self._parsing = parsing
        self._readers: dict[int, ChoiceReader] = {}
        """Those of the choices that have begun: a request may have thousands of choices."""

    @property
    def id(self) -> str:
        """The request's id in the response."""
        return self.generation.request_id

    @property
    def prompt(self) -> RenderedPrompt:
        """The rendered conversation."""
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
        async with aclosing(generate(self._inference, self.generation)) as deltas:
            async for delta in deltas:
                yield self._read(delta, is_whole=False)

    async def collect(self) -> list[ChoiceDelta]:
        """Runs the request to its end; returns one delta per choice.

        Raises:
            EngineError: the engine failed.
        """
        deltas = await collect(self._inference, self.generation)
        return [self._read(delta, is_whole=True) async for delta in take_turns(deltas)]

    def _read(self, delta: SequenceDelta, *, is_whole: bool) -> ChoiceDelta:
        """Parses a delta and counts its tokens."""
        self.meter.add(delta)
        reader = self._readers.get(delta.choice)
        if reader is None:
            reasoning = self.generation.reasoning_of(delta.choice)
            reader = self._parsing.create_reader(self.request, reasoning, is_whole=is_whole)
            self._readers[delta.choice] = reader
        return reader.read(delta)


async def render_chat_request(inference: Inference, request: ChatRequest, context: RequestContext) -> RenderedPrompt:
    """The prompt of a request.

    Raises:
        RequestError: the conversation is invalid.
    """
    renderer = inference.renderer
    images = await renderer.load_images(request.messages, context.lease)
    return await renderer.run_in_pool(_render, inference, request, images)


def _render(inference: Inference, request: ChatRequest, images: ProcessedImages | None) -> RenderedPrompt:
    options = chat_options(request, inference.config.generation)
    prompt = inference.renderer.render_chat(request.messages, options, images)
    if request.prompt_logprobs is not None and prompt.inputs is not None and prompt.inputs.embeds is not None:
        raise RequestError(
            "`prompt_logprobs` is not compatible with `prompt_embeds`: they have no tokens.", param="prompt_logprobs"
        )
    return prompt


def chat_options(request: ChatRequest, config: GenerationConfig) -> ChatOptions:
    """Options for a chat completion."""
    is_without_tools = config.exclude_tools_when_tool_choice_none and request.tool_choice == "none"
    return ChatOptions(
        add_generation_prompt=request.opens_message,
        continue_final_message=request.continue_final_message,
        tools=None if is_without_tools else shown_tools(request.tools),
        documents=request.documents,
        chat_template=request.chat_template,
        chat_template_kwargs=request.template_kwargs,
        add_special_tokens=request.add_special_tokens,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
        truncation_side=request.truncation_side,
    )
