"""Which parsers read the output of a chat request."""

from server.config import ServerConfig
from server.errors import RequestError
from server.parsers.base import OutputParser, ToolParser
from server.parsers.forced import NamedCallParser, RequiredCallsParser
from server.parsers.registry import load_tool_parser
from server.protocol.chat import ChatRequest


class OutputParsing:
    """One per server; imports the parsers that its flags name."""

    def __init__(self, config: ServerConfig) -> None:
        self._tool_parser: type[ToolParser] | None = None
        if config.enable_auto_tool_choice and config.tool_call_parser is not None:
            self._tool_parser = load_tool_parser(config.tool_call_parser)

    def check(self, request: ChatRequest) -> None:
        """Raises RequestError if the model may choose tools and no parser reads its calls."""
        if request.tool_choice == "auto" and self._tool_parser is None:
            raise RequestError(
                '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
                param="tool_choice",
            )

    def keeps_special_tokens(self, request: ChatRequest) -> bool:
        """Whether the parsers need the text of special tokens."""
        parser = self._auto_parser(request)
        return parser is not None and parser.needs_special_tokens

    def create_parser(self, request: ChatRequest) -> OutputParser | None:
        """The parser of one choice; None if its text is the content."""
        if request.named_function is not None:
            return NamedCallParser(request.named_function)
        if request.tool_choice == "required":
            return RequiredCallsParser()
        parser = self._auto_parser(request)
        return None if parser is None else parser([tool.function for tool in request.tools or ()])

    def _auto_parser(self, request: ChatRequest) -> type[ToolParser] | None:
        """The parser of the model's own format, if the model chooses tools."""
        return self._tool_parser if request.tools and request.tool_choice in ("auto", None) else None
