"""A client for any server with the OpenAI API. Uses only the standard library."""

import json
import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse, IncompleteRead
from sys import float_info
from typing import Any, Final, NamedTuple, TypeVar, cast

import click

from base.json_depth import read_json
from envs.registry import env
from startup.logs.formatters import escape_controls
from vllm_cli.client.server_address import ServerAddress, address_options, take_address
from vllm_cli.errors import ConnectionFailedError, NotUtf8Error
from vllm_cli.terminal import options

_CONNECT_TIMEOUT_S: Final = 10.0
_LONGEST_MESSAGE: Final = 400
_LONGEST_SHOWN: Final = 80
_NUM_SHOWN_BEFORE: Final = 20
"""How many characters before a wrong byte an error shows."""
_END: Final = b"[DONE]"
"""The data of a stream's last event."""
_MAX_ANSWER_BYTES: Final = 64 << 20
_MAX_LINE_BYTES: Final = 16 << 20
"""The longest line of a stream. A longer line ends the stream."""

T = TypeVar("T")


server_options: Final = options(
    click.option("--url", help="Address of the server: http(s)://… or unix:/path."),
    address_options,
    click.option("--api-key", help="Key to send, by default OPENAI_API_KEY or VLLM_API_KEY."),
)
"""The options that `take_server` reads."""


def take_server(options: dict[str, Any]) -> "ServerClient":
    """Takes the options of `server_options` out of a command's parameters. Raises InputError."""
    return ServerClient(take_address(options), choose_key(options.pop("api_key")))


def choose_key(given: str | None) -> str | None:
    """The key to send: the given key, else the key in an environment variable. None if there is neither."""
    return given or env.OPENAI_API_KEY.get() or env.VLLM_API_KEY.get()


class ReceivedAnswer(NamedTuple):
    """A server's answer, whatever its status."""

    status: int
    reason: str
    headers: HTTPMessage
    content: bytes


class Piece(NamedTuple):
    """A part of a streamed answer."""

    text: str
    num_tokens: int | None = None
    """The number of tokens of the whole answer. None in all pieces except the last."""


@dataclass(frozen=True)
class ServerClient:
    """The address of a server, and a key. Each request opens a new connection."""

    address: ServerAddress
    api_key: str | None = None

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        max_bytes: int = _MAX_ANSWER_BYTES,
    ) -> ReceivedAnswer:
        """Sends one request, with the body as JSON. Raises OSError or HTTPException if there is no answer.

        An answer is cut after `max_bytes`.
        """
        with self._open(method, path, body, timeout_s) as response:
            return ReceivedAnswer(response.status, response.reason, response.headers, response.read(max_bytes))

    def ask(self, method: str, path: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Sends a request without a body. Returns the answer's JSON. A timeout of None means no limit."""
        with explain_failures(self.address):
            answer = self.request(method, path, timeout_s=timeout_s)
        self._raise_for_status(answer.status, answer.reason, answer.content)
        return _decode(answer.content)

    def first_model(self) -> str:
        """The name of the first model in the server's list."""
        name = member(self.ask("GET", "/v1/models"), "data.0.id", str)
        if not name:
            raise ConnectionFailedError(f"The server at {self.address} lists no model.")
        return name

    def stream(self, path: str, body: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """Posts a request and yields the pieces of the answer. Closing the generator aborts the request."""
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with explain_failures(self.address), self._open("POST", path, streamed) as response:
            if response.status >= 400:
                self._raise_for_status(response.status, response.reason, response.read(_MAX_ANSWER_BYTES))
            yield from map(_read_piece, _read_events(response))

    def _raise_for_status(self, status: int, reason: str, content: bytes) -> None:
        if status < 400:
            return
        body: Any = content.decode(errors="replace")
        with suppress(ValueError):
            body = read_json(content)
        text = f"The server answered {status}: {_describe_error(body) or reason}"
        if status == 404 and self.address.path:
            text += f" The address has the path {escape_controls(self.address.path)}: leave it out if it is wrong."
        raise ConnectionFailedError(text, status)

    @contextmanager
    def _open(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float | None = None
    ) -> Iterator[HTTPResponse]:
        """Sends a request and yields the answer with its body unread. The timeout is for each operation."""
        content = None if body is None else json.dumps(body)
        headers: dict[str, str | bytes] = {"Content-Type": "application/json", "Connection": "close"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}".encode("utf-8", "surrogateescape")
        with closing(self.address.connect(min(timeout_s or math.inf, _CONNECT_TIMEOUT_S))) as connection:
            connection.connect()
            connection.sock.settimeout(timeout_s)
            connection.request(method, self.address.path + path, content, headers)
            yield connection.getresponse()


@contextmanager
def explain_failures(address: ServerAddress) -> Iterator[None]:
    """Turns errors of the connection within the block into ConnectionFailedError."""
    try:
        yield
    except (ConnectionResetError, BrokenPipeError, IncompleteRead) as err:  # includes RemoteDisconnected
        raise ConnectionFailedError(f"The server at {address} closed the connection.") from err
    except HTTPException as err:
        raise ConnectionFailedError(f"The server at {address} does not speak HTTP ({_reason(err)}).") from err
    except OSError as err:
        message = f"No server answers at {address} ({_reason(err)}). Is `vllm-cli serve` running?"
        raise ConnectionFailedError(message) from err


def member(body: Any, path: str, kind: type[T]) -> T | None:
    """The member of a server's answer at a path such as `choices.0.text`. None if it is null or missing.

    Raises:
        ConnectionFailedError: this member has another type, or a member on the way to it.
    """
    for name in path.split("."):
        if name.isdigit():
            body = (_typed(body, path, list) or [None])[int(name)]
        else:
            body = (_typed(body, path, dict) or {}).get(name)
    value = _typed(body, path, kind)
    return cast("T", value.encode(errors="replace").decode()) if isinstance(value, str) else value


def _typed(value: Any, path: str, kind: type[T]) -> T | None:
    if value is None or type(value) is kind:
        return value
    shown = _on_one_line(json.dumps(value))[:_LONGEST_SHOWN]
    raise ConnectionFailedError(f"The server does not respond as an OpenAI server does: `{path}` is in {shown}")


def amount(value: Any, most: float = float_info.max) -> float | None:
    """The value, limited to `most`, if it is a number of at least 0. None for other values."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(min(value, most)) if is_number and 0 <= value < math.inf else None


def utf8_text(text: str) -> str:
    """Returns a text of the arguments or of standard input for a request, whatever the locale's encoding is.

    Python keeps bytes that the locale cannot decode as halves of surrogate pairs. UTF-8 becomes text again.

    Raises:
        NotUtf8Error: the bytes are not UTF-8, so no request can have them.
    """
    data = text.encode("utf-8", "surrogateescape")
    try:
        return data.decode()
    except UnicodeDecodeError as err:
        before, wrong = data[: err.start].decode(), data[err.start : err.end]
        raise NotUtf8Error(_on_one_line(before[-_NUM_SHOWN_BEFORE:]), wrong) from err


def _read_events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    has_begun = False
    for line in iter(lambda: response.readline(_MAX_LINE_BYTES), b""):
        name, _, data = line.partition(b":")
        if name == b"data":
            if data.strip() == _END:
                return
            yield _decode(data)
            has_begun = True
    kind = _on_one_line(response.headers.get_content_type())
    text = "The server ended its answer before it was complete." if has_begun else f"No stream, but {kind}, came."
    raise ConnectionFailedError(text)


def _decode(data: bytes) -> dict[str, Any]:
    try:
        body = read_json(data)
    except ValueError as err:
        shown = _on_one_line(data[:_LONGEST_SHOWN].decode(errors="replace"))
        text = f"The server does not respond as an OpenAI server does: its answer is no JSON ({shown})"
        raise ConnectionFailedError(text) from err
    return _typed(body, "the answer", dict) or {}


def _read_piece(event: dict[str, Any]) -> Piece:
    if event.get("error"):
        raise ConnectionFailedError(f"The server failed: {_describe_error(event)}")
    text = member(event, "choices.0.text", str) or member(event, "choices.0.delta.content", str)
    num_tokens = amount((member(event, "usage", dict) or {}).get("completion_tokens"))
    return Piece(text or "", None if num_tokens is None else int(num_tokens))


def _describe_error(body: Any) -> str:
    """The message of an error of OpenAI, vLLM or FastAPI, or the whole body of other errors, on one line."""
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and name in body:
            body = body[name]
    return _on_one_line(body)[:_LONGEST_MESSAGE]


def _on_one_line(message: object) -> str:
    """A server's message on one line, safe for a terminal."""
    return escape_controls(" ".join(str(message).split()))


def _reason(err: Exception) -> str:
    return str(getattr(err, "strerror", None) or err or type(err).__name__).lower()
