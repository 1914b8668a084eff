"""Bodies of OpenAI servers: the events of a stream, and the message of an error."""

import json
from contextlib import suppress
from typing import Any, Final

END: Final = b"[DONE]"
"""The data of the last event of a stream."""
_LONGEST_MESSAGE: Final = 400


class EventReader:
    """Splits the bytes of server-sent events into the data of the events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that are complete; a line may be spread over several calls."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


def error_message(data: bytes) -> str:
    """The message on one line: from OpenAI's, vLLM's or FastAPI's envelope, or the whole body."""
    body: Any = data.decode(errors="replace")
    with suppress(ValueError, RecursionError):
        body = json.loads(body)
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and name in body:
            body = body[name]
    return " ".join(str(body).split())[:_LONGEST_MESSAGE]
