"""Reads the output of a chat request: which parsers do, and what they make of each choice."""

import logging
from typing import Literal, NamedTuple
from uuid import uuid4

from base.errors import RequestError
from server.generation.chat_request import ChatRequest
from server.generation.generation import SequenceDelta
from server.generation.guided import Constraint, find_strict_constraint
from server.generation.reasoning import ModelReasoning, PromptReasoning, read_model_facts, read_model_type
from server.parsers.base import CallFormat, OutputParser, ToolParser
from server.parsers.chain import ParserChain, WholeCalls
from server.parsers.detection import FALLBACK, detect_tool_format
from server.parsers.events import CallArguments, CallStart, Content, Event, Reasoning
from server.parsers.forced import NamedCallParser, RequiredCallsParser
from server.parsers.registry import AUTO, load_tool_parser
from server.renderers.base import BaseRenderer
from server.renderers.registry import find_tokenizer_mode
from server.renderers.tokenizers.tokenizer import Tokenizer
from server.server_config import GenerationConfig

logger = logging.getLogger(__name__)

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


class OutputParsing:
    """One per server; imports the parsers that its flags name."""

    def __init__(self, config: GenerationConfig, renderer: BaseRenderer, reasoning: ModelReasoning) -> None:
        """Raises ParserMissingError if the library of the parser's format is not installed."""
        self._reasoning = reasoning
        self._tool_parser: type[ToolParser] | None = None
        self._call_format: CallFormat | None = None
        self._needs_special_tokens = False
        self._trigger_id: int | None = None
        if config.enable_auto_tool_choice and config.tool_call_parser is not None:
            name = config.tool_call_parser
            self._tool_parser = load_tool_parser(_detect(renderer) if name == AUTO else name)
            self._call_format = self._tool_parser.call_format
            self._needs_special_tokens = self._tool_parser.needs_special_tokens
        if self._call_format is not None:
            self._trigger_id = _find_special_token(self._call_format.trigger, renderer.tokenizer)
        self._accepts_auto = self._tool_parser is not None or _has_own_tool_format(renderer)

    def check(self, request: ChatRequest) -> None:
        """Raises RequestError if the model may choose tools and no parser reads its calls.

        As in vLLM, models whose library writes the prompt are exempt: their calls are then content.
        """
        if request.tool_choice == "auto" and not self._accepts_auto:
            raise RequestError(
                '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
                param="tool_choice",
            )

    def keeps_special_tokens(self, request: ChatRequest) -> bool:
        """Whether the parsers need the text of special tokens."""
        has_parser = self._auto_parser(request) is not None
        return self._reasoning.keeps_special_tokens or (has_parser and self._needs_special_tokens)

    def hides_tokens(self, request: ChatRequest) -> bool:
        """Whether ids and log-probabilities are left out, because they would show the hidden reasoning."""
        is_configured = self._reasoning.is_configured or self._tool_parser is not None
        return not request.include_reasoning and is_configured

    def find_constraint(self, request: ChatRequest) -> Constraint | None:
        """The grammar of calls that the model chooses, if a tool is strict and the format allows it."""
        if self._auto_parser(request) is None or self._call_format is None:
            return None
        return find_strict_constraint(request, self._call_format, trigger_id=self._trigger_id)

    def create_reader(
        self, request: ChatRequest, reasoning: PromptReasoning | None, *, is_whole: bool
    ) -> "ChoiceReader":
        """The reader of one choice.

        With `is_whole`, it reads the whole choice as one delta, and malformed calls are content.
        """
        return ChoiceReader(request, self._create_parser(request, reasoning, is_whole=is_whole))

    def _create_parser(
        self, request: ChatRequest, reasoning: PromptReasoning | None, *, is_whole: bool
    ) -> OutputParser | None:
        """The parser of one choice; None if its text is the content."""
        tools = self._create_tool_parser(request, is_whole=is_whole)
        if reasoning is None or (reasoning.format.parses_calls and tools is not None and not request.forces_call):
            return tools
        parser = reasoning.create_parser(is_call_forced=request.forces_call)
        return parser if tools is None else ParserChain(parser, tools)

    def _create_tool_parser(self, request: ChatRequest, *, is_whole: bool) -> OutputParser | None:
        if request.named_function is not None:
            return NamedCallParser(request.named_function)
        if request.tool_choice == "required":
            return RequiredCallsParser()
        create = self._auto_parser(request)
        if create is None:
            return None
        parser = create([tool.function for tool in request.tools or ()])
        return WholeCalls(parser) if is_whole else parser

    def _auto_parser(self, request: ChatRequest) -> type[ToolParser] | None:
        """The parser of the model's own format, if the model chooses tools."""
        return self._tool_parser if request.tools and request.tool_choice in ("auto", None) else None


def _has_own_tool_format(renderer: BaseRenderer) -> bool:
    """Whether mistral-common or openai-harmony defines the model's format of tools."""
    return find_tokenizer_mode(renderer.files) == "mistral" or read_model_type(renderer) == "gpt_oss"


def _detect(renderer: BaseRenderer) -> str:
    found = detect_tool_format(read_model_facts(renderer))
    if found is None:
        logger.warning("--tool-call-parser auto: the model's files name no format, so %s is used", FALLBACK)
        return FALLBACK
    logger.info("--tool-call-parser auto: %s, by the model's %s", found.name, found.source)
    return found.name


def _find_special_token(text: str, tokenizer: Tokenizer) -> int | None:
    """The special token with this text; None if a grammar has to match the text itself."""
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
