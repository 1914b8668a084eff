"""A client that sends a router's requests to the control socket of a model's server."""

import json
import socket
from typing import Any

from base.server_settings import control_socket


def tell(socket_path: object, timeout_s: float = 600.0, **request: Any) -> dict[str, Any] | None:
    """Sends a request to the server at this socket. Returns the answer, or None if the server sends none."""
    return tell_line(socket_path, json.dumps(request).encode() + b"\n", timeout_s)


def tell_line(socket_path: object, line: bytes, timeout_s: float = 600.0) -> dict[str, Any] | None:
    """Sends any bytes to the server at this socket. Returns the answer, or None if the server sends none."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(control_socket(str(socket_path))))
        connection.sendall(line)
        with connection.makefile("rb") as answers:
            answer: dict[str, Any] | None = json.loads(answers.readline() or b"null")
            assert answers.read() == b"", "the server closes the connection"
            return answer
