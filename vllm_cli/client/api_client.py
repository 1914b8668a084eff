"""A small client of the OpenAI API for `chat`, `complete`, `load` and `unload`; standard library only."""

import json
from collections.abc import Generator, Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, Final, NamedTuple

from startup.logs.formatters import escape_controls
from vllm_cli.client.response_body import END, EventReader, error_message
from vllm_cli.client.server_address import ServerAddress
from vllm_cli.errors import ConnectionFailedError

_CONNECT_TIMEOUT_S: Final = 10.0


class Piece(NamedTuple):
    """A part of a streamed answer."""

    text: str
    num_tokens: int | None = None
    """Tokens of the whole answer; only the last piece has them."""


class ApiClient:
    """Client of one server. Raises ConnectionFailedError."""

    def __init__(self, address: ServerAddress, api_key: str | None) -> None:
        self._address = address
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def first_model(self) -> str:
        """The name of the model that the server lists first."""
        body = self.get("/v1/models")
        if not body.get("data"):
            raise ConnectionFailedError(f"The server at {self._address} lists no model.")
        return str(body["data"][0]["id"])

    def get(self, path: str) -> dict[str, Any]:
        """The JSON of the answer to a GET."""
        return self._ask("GET", path)

    def post(self, path: str) -> dict[str, Any]:
        """The JSON of the answer to a POST without a body, which may take any time."""
        return self._ask("POST", path)

    def stream(self, path: str, body: dict[str, Any]) -> Generator[Piece, None, None]:
        """Posts a request and yields the answer; closing the generator aborts the request."""
        payload = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}})
        with closing(self._connect()) as connection:
            response = self._request(connection, "POST", path, payload)
            try:
                yield from map(_read_piece, _read_events(response))
            except (HTTPException, OSError) as err:
                message = f"The server at {self._address} closed the connection during its answer ({_reason(err)})."
                raise ConnectionFailedError(message) from err

    def _ask(self, method: str, path: str) -> dict[str, Any]:
        with closing(self._connect()) as connection:
            try:
                return _decode(self._request(connection, method, path).read())
            except (HTTPException, OSError) as err:
                message = f"The server at {self._address} closed the connection during its answer ({_reason(err)})."
                raise ConnectionFailedError(message) from err

    def _connect(self) -> HTTPConnection:
        connection = self._address.connect(_CONNECT_TIMEOUT_S)
        try:
            connection.connect()
        except OSError as err:
            message = f"No server answers at {self._address} ({_reason(err)}). Is `vllm-cli serve` running?"
            raise ConnectionFailedError(message) from err
        connection.sock.settimeout(None)
        return connection

    def _request(self, connection: HTTPConnection, method: str, path: str, payload: str | None = None) -> HTTPResponse:
        try:
            connection.request(method, self._address.path + path, payload, self._headers)
            response = connection.getresponse()
            if response.status >= 400:
                message = error_message(response.read()) or response.reason
                text = f"The server answered {response.status}: {_on_one_line(message)}"
                raise ConnectionFailedError(text, response.status)
        except ConnectionResetError as err:  # RemoteDisconnected is one
            raise ConnectionFailedError(f"The server at {self._address} closed the connection.") from err
        except (HTTPException, OSError) as err:
            raise ConnectionFailedError(f"The server at {self._address} does not speak HTTP ({_reason(err)}).") from err
        return response


def _read_events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    reader = EventReader()
    for line in response:
        for data in reader.feed(line):
            if data == END:
                return
            yield _decode(data)
    raise ConnectionFailedError("The server ended its answer before it was complete.")


def _decode(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except ValueError as err:
        raise ConnectionFailedError("The server does not respond as an OpenAI server does.") from err
    return body if isinstance(body, dict) else {}


def _read_piece(event: dict[str, Any]) -> Piece:
    if error := event.get("error"):
        raise ConnectionFailedError(f"The server failed: {_on_one_line(error.get('message', error))}")
    usage = event.get("usage") or {}
    choices = event.get("choices") or [{}]
    text = choices[0].get("text") or (choices[0].get("delta") or {}).get("content") or ""
    return Piece(text, usage.get("completion_tokens"))


def _on_one_line(message: object) -> str:
    """A server's message, safe for a terminal."""
    return escape_controls(" ".join(str(message).split()))


def _reason(err: Exception) -> str:
    return str(getattr(err, "strerror", None) or err or type(err).__name__).lower()
