"""A request of which the test holds the connection, to hang up when it likes."""

import json
import socket
from typing import Any
from urllib.parse import urlsplit


def send(server: Any, path: str, body: dict[str, Any]) -> socket.socket:
    """The connection on which the request was sent."""
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port))
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection
