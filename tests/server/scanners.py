"""Lists all code that reads text of a client or model, with the texts that cost it most.

`test_scanners.py` measures each scanner, and finds modules that are missing in this list.
"""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

import pybase64

from base.access_log import QueryMask
from base.errors import ServerError
from base.http_requests import query_value
from base.json_depth import MOST_LEVELS, check_depth
from base.security.api_keys import ApiKeys
from base.security.cors import _ASKED_HEADERS, CorsPolicy
from base.server_settings import NetworkConfig
from server.apis.anthropic.serving import BlockStream
from server.apis.responses.output import OutputWriter
from server.apis.responses.responses_request import ResponsesRequest
from server.apis.responses.tools import ResponseTools
from server.engine.sampling.grammar import _COSTLY, GrammarError, _estimate_chars, is_harmless
from server.engine.sampling.json_schema import prepare_schema, translate_regex
from server.engine.sampling.reasoning import MarkerFinder
from server.generation.generation_request import ChatRequest, CompletionRequest, StructuredOutputs
from server.generation.guided import find_constraint
from server.http.routes.endpoint import read_announced_bytes
from server.http.transport.added_headers import read_request_id
from server.http.transport.http_request import find_header
from server.terms.config import RendererConfig
from server.terms.http_body.request_body import RequestDecoder, check_num_values
from server.terms.types import GuidedDecoding, ReasoningMarker
from server.text.parsers.call_text import text_to_value
from server.text.parsers.formats import TOOL_FORMATS
from server.text.parsers.json_text import read_json
from server.text.parsers.output_parser import Content, OutputParser
from server.text.renderers.conversation import to_conversation
from server.text.renderers.detokenizer import MAX_STOP_CHARS, UNFINISHED, DecodeWindow, PromptTail, StopScanner
from server.text.renderers.images.fetcher import MediaFetcher
from server.text.renderers.images.loader import decode_data_url
from server.text.renderers.prompt_embeds import EmbedsLimits, safe_load_prompt_embeds
from startup.port.probe_http import parse_probe
from tests.server.engine.sampling.grammar_texts import build_grammar
from tests.server.text.parsers.transcripts import FUNCTIONS

TOKEN: Final = 4
"""The number of characters of each piece in which a model's output arrives."""


class Text(NamedTuple):
    """A text of any size: `begin`, then `unit` repeatedly, then `end`."""

    unit: str
    begin: str = ""
    end: str = ""

    def of_size(self, n: int) -> str:
        return self.begin + (self.unit * (n // len(self.unit) + 1))[:n] + self.end


class Scanner(NamedTuple):
    """Code that reads text. Several functions that read the same text may be one scanner."""

    name: str
    modules: str
    """The modules, with blanks between, that read the text, and those whose functions they call for it."""
    read: Callable[[str], object]
    texts: Sequence[Text]
    smallest: int = 512
    """The smallest size of text to measure."""

    def prepare(self, text: Text, n: int) -> Callable[[], object]:
        """The computation that reads a text of about n characters. It may also reject the text."""
        whole = text.of_size(n)

        def work() -> None:
            with suppress(ServerError, GrammarError):
                self.read(whole)

        return work


def _units(*units: str, begin: str = "", end: str = "") -> list[Text]:
    return [Text(unit, begin, end) for unit in units]


def _in_pieces(text: str, read: Callable[[str], object], size: int = TOKEN) -> None:
    for at in range(0, len(text), size):
        read(text[at : at + size])


def _log_access(text: str) -> None:
    args = ("127.0.0.1:5", "GET", "/health?" + text, "1.1", 200)
    QueryMask().filter(logging.LogRecord("uvicorn.access", logging.INFO, "", 0, "", args, None))


def _headers(text: str) -> None:
    keys, cors = ApiKeys(("a",)), CorsPolicy(NetworkConfig(allowed_origins=("a",), allowed_headers=("a",)))
    cors.answer_preflight(dict.fromkeys(("origin", "access-control-request-method", _ASKED_HEADERS), text))
    for name in (b"x-request-id", b"content-type", b"content-encoding", b"authorization", b"x-api-key"):
        headers = [(name, text.encode("latin-1"))]
        read_request_id(headers)
        with suppress(ServerError):
            read_announced_bytes(headers, max_bytes=1)
        keys.refusal(lambda name, headers=headers: (find_header(headers, name.encode()) or "").encode("latin-1"))


def _stop(text: str) -> None:
    few_long_ones = [text[: MAX_STOP_CHARS // 3 - 1] + end for end in "bcd"]
    many = ["a" * num + "b" * (64 - num) for num in range(0, 64, 4)]
    assert sum(map(len, many)) == MAX_STOP_CHARS
    for stops in (few_long_ones, many):
        scanner = StopScanner(stops)
        _in_pieces(text, scanner.scan)
        scanner.release()


def _detokenize(text: str) -> None:
    def decode(token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))

    ids = list(map(ord, text))
    window = DecodeWindow(decode, PromptTail(ids))
    for token_id in ids:
        window.step(token_id)


def _find_markers(text: str) -> None:
    finder = MarkerFinder([ReasoningMarker("</think>"), ReasoningMarker("a" * 100)], lambda token: bytes([token]))
    for byte in text.encode():
        finder.add(byte)


_CHAT: Final = RequestDecoder(ChatRequest)
_EMBEDS: Final = EmbedsLimits(max_model_len=1 << 20, width=4, dtype="float32")


def _body(text: str) -> None:
    _CHAT.decode(text.encode())


def _embeds(text: str) -> None:
    for embeds in (pybase64.b64encode(text.encode("latin-1")), text):
        with suppress(ServerError):
            safe_load_prompt_embeds(embeds, _EMBEDS)


def _media(text: str) -> None:
    with suppress(ServerError):
        decode_data_url(text, max_bytes=1 << 24)
    fetcher = MediaFetcher(RendererConfig(allowed_media_domains=("a.example",)))
    with suppress(ServerError, ValueError):  # `fetch` makes one of the other
        fetcher._check(fetcher._parse(text))


def _messages(text: str) -> None:
    function = {"name": "f", "arguments": text}
    call = {"role": "assistant", "content": text, "tool_calls": [{"function": function}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}] * (len(text) // 8)}
    to_conversation([call, parts], "string")


def _grammar(kind: str, text: str) -> None:
    build_grammar(GuidedDecoding(kind, text))  # type: ignore[arg-type]


def _is_harmless(text: str) -> None:
    """Searches the whole text, however long it is."""
    kinds: tuple[Any, ...] = ("json_schema", "regex", "choice", "grammar")
    for kind in kinds:
        _COSTLY.search(text)
        _estimate_chars(GuidedDecoding(kind, text))
        is_harmless(GuidedDecoding(kind, text))


def _members(text: str) -> None:
    """Prepares a schema with many properties and one with many alternatives: more for a longer text."""
    members = {text[:3] + str(number): {"type": "integer"} for number in range(len(text) // 8)}
    either = [{"type": "object", "properties": {"a": {"pattern": text[:8]}}}] * (len(text) // 8)
    prepare_schema(json.dumps({"type": "object", "properties": members}))
    prepare_schema(json.dumps({"anyOf": either}))


def _schema(text: str) -> None:
    find_constraint(CompletionRequest(prompt="a", structured_outputs=StructuredOutputs(json=text)))


def _blocks(text: str) -> None:
    blocks = BlockStream()
    blocks.add_call("a", "f")
    _in_pieces(text, blocks.add_arguments)
    _in_pieces(text, blocks.add_text)
    blocks.close()
    assert blocks.is_call_complete in (True, False)


def _response(text: str) -> None:
    writer = OutputWriter(ResponseTools(ResponsesRequest(input="a")))
    _in_pieces(text, lambda piece: writer.add([Content(piece)], []))
    writer.finish()


def _call(name: str, text: str) -> None:
    """Parses a text whole and in pieces. `test_output_parser.py` counts what is read before a call ends."""
    for size in (TOKEN, len(text)):
        parser = OutputParser(FUNCTIONS, tools=TOOL_FORMATS[name])
        _in_pieces(text, parser.feed, size)
        parser.finish()


def _calls(name: str, begin: str, *units: str, end: str = "") -> Scanner:
    texts = _units(" ", "\\'", '\\"', "<", "[{", "a", *units, begin=begin, end=end)
    return Scanner(f"calls {name}", _PARSER, partial(_call, name), texts, smallest=1024)


_PARSER: Final = "server.text.parsers.output_parser server.text.parsers.call_text server.text.parsers.formats"

_BRACKETS: Final = ("[", "{", '{"a":', "[[],", '"', '\\"', "\\", ",", '"",', '{"":0},', "0,")

SCANNERS: Final = [
    Scanner(
        "query", "base.http_requests", lambda text: query_value(text, "model"), _units("a&", "model=&", "model", "%")
    ),
    Scanner("access log", "base.access_log", _log_access, _units("?key", "key", "&key", "=", "key=", "&", "?")),
    Scanner(
        "headers",
        "base.http_requests server.http.routes.endpoint base.security.cors base.security.api_keys",
        _headers,
        [*_units("a", " ", ",", ";"), Text(" ", "Bearer"), Text("=", "a;")],
    ),
    Scanner(
        "probe",
        "startup.port.probe_http",
        lambda text: parse_probe(text.encode()),
        _units("a:\r\n", "a:", "a", ":", "\r\n", begin="GET /health HTTP/1.1\r\n"),
    ),
    Scanner("stop strings", "server.text.renderers.detokenizer", _stop, _units("a", "ab", "aab", "abaab")),
    Scanner("detokenizer", "server.text.renderers.detokenizer", _detokenize, _units("a", UNFINISHED, UNFINISHED + "a")),
    Scanner("reasoning markers", "server.engine.sampling.reasoning", _find_markers, _units("a", "<", "</thin", "aaa<")),
    Scanner(
        "bodies",
        "server.terms.http_body.request_body",
        _body,
        [
            *_units(*_BRACKETS),
            *_units(*_BRACKETS, begin='{"messages": [{"role": "user", "content": "'),
            *_units(*_BRACKETS, begin='{"messages": ['),
            Text("a - at `$.", '{"', '": 1, "messages": []}'),
            Text(" - at `$.", '{"messages": "', '"}'),
            Text('"a": 1, ', "{", '"b": 1}'),
            Text('{"role": "user", "content": 0},', '{"messages": [', "0]}"),
        ],
    ),
    Scanner(
        "number of values",
        "server.terms.http_body.request_body",
        lambda text: check_num_values(text.encode(), 10),
        [*_units('\\"', "\\", "a", ",", begin='[",,,,,,,,,,,,'), *_units(" ", "1", "]", begin='[",,,,,,,,,,,,"')],
    ),
    Scanner(
        "nesting",
        "base.json_depth",
        lambda text: suppress_errors(check_depth, text),
        [
            *_units('\\"', "\\", "a", '"["', begin=f'["{"[" * MOST_LEVELS}'),
            *_units("[],", "[[]],", "]", begin="[" * (MOST_LEVELS - 2)),
        ],
    ),
    Scanner(
        "prompt_embeds",
        "server.text.renderers.tensor_file",
        _embeds,
        [*_units("A", "=", "PK\x01\x02", "PK\x03\x04"), Text("q\x00h\x00", "PK\x03\x04")],
    ),
    Scanner(
        "media",
        "server.text.renderers.images.loader server.text.renderers.images.fetcher",
        _media,
        [
            *_units("a", "a.", "é", "%", "/", "[", ":", "@", "xn--", begin="http://"),
            *_units("A", "=", ",", ";", "/", begin="data:image/png;base64,"),
            *_units("a", ";", "/", begin="data:"),
        ],
    ),
    Scanner("messages", "server.text.renderers.conversation", _messages, _units("a", "[", '{"a":', "0", "\\", '"')),
    Scanner("schemas", "server.generation.guided", _schema, _units("[", '{"a":', "0", "[],", '{"type":"object"},')),
    Scanner(
        "regex grammars",
        "server.engine.sampling.grammar",
        partial(_grammar, "regex"),
        _units("a", "(", "(a|b)", "a*", "["),
    ),
    Scanner(
        "regular expressions",
        "server.engine.sampling.json_schema",
        translate_regex,
        _units("[", "[[:", "\\", "[a-", "--", "^$.", "\\u{"),
    ),
    Scanner(
        "costs of grammars",
        "server.engine.sampling.grammar",
        _is_harmless,
        _units("1", "1e", "1e+", "12345", "multiple", "{1", "a{1}", '"minItems": 1', '"$ref": "', '{1}"'),
    ),
    Scanner("members of schemas", "server.engine.sampling.json_schema", _members, _units("a", "[a-z--b]")),
    Scanner(
        "schema grammars",
        "server.engine.sampling.grammar",
        partial(_grammar, "json_schema"),
        [Text('"a",', '{"enum": [', '"b"]}'), Text("a", '{"type": "object", "description": "', '"}')],
    ),
    Scanner(
        "lark grammars", "server.engine.sampling.grammar", partial(_grammar, "grammar"), _units("start: ", '"a" ', "(")
    ),
    Scanner("Anthropic blocks", "server.apis.anthropic.serving", _blocks, _units("a", "[", '{"a":', " ")),
    Scanner("response output", "server.apis.responses.output", _response, _units(" ", "a", "\n ")),
    Scanner(
        "values",
        "server.text.parsers.json_text server.text.parsers.call_text",
        lambda text: (
            suppress_errors(read_json, text),
            text_to_value(text, frozenset(("integer", "number", "object"))),
        ),
        _units("[", '{"a":', "0", "9", "[0],", "-", "1e", "\\", '"', " "),
    ),
    _calls("hermes", '<tool_call>{"name": "f", "arguments": ', '{"a":', "0,", end="}</tool_call>"),
    _calls("jamba", "<tool_calls>[", '{"name": "f", "arguments": {}},', end="0]"),
    _calls("pythonic", "[f(a=", "'", "f(", "0,", end=")]"),
    _calls("qwen3_xml", "<function=f>", "<parameter=a>", "< parameter = ", "<parameter=a>\n", end="</function>"),
    _calls("glm45", "<tool_call>now", "<arg_key>a</arg_key><arg_value>", "<arg_key>a</arg_key>", end="</tool_call>"),
    _calls("functiongemma", "<start_function_call>call:f{", "a:<escape>", "<escape>", end="<end_function_call>"),
    _calls("gemma4", "<|tool_call>call:f{", '<|"|>', "a:", "a,", end="}<tool_call|>"),
    _calls("openai", "<|channel|>commentary to=functions.f<|message|>", "<|start|>", " to=f", end="<|call|>"),
    _calls("llama3_json", "", '{"name":', '{"name": "f", "parameters": {}};'),
]


def suppress_errors(read: Callable[[str], object], text: str) -> None:
    with suppress(ValueError):
        read(text)
