"""A router's side of the control socket of a model's server."""

import json
import socket
from typing import Any

from base.server_settings import control_socket


def tell(socket_path: object, timeout_s: float = 600.0, **request: Any) -> dict[str, Any] | None:
    """The answer to a request to the server at this socket; None if it ends without one."""
    return tell_line(socket_path, json.dumps(request).encode() + b"\n", timeout_s)


def tell_line(socket_path: object, line: bytes, timeout_s: float = 600.0) -> dict[str, Any] | None:
    """The same with bytes of a client's choice."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(control_socket(str(socket_path))))
        connection.sendall(line)
        with connection.makefile("rb") as answers:
            answer: dict[str, Any] | None = json.loads(answers.readline() or b"null")
            assert answers.read() == b"", "the server closes the connection"
            return answer
