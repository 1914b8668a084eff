"""A request whose connection the test holds, so that it can disconnect at any time."""

import json
import socket
from typing import Any
from urllib.parse import urlsplit


def send(server: Any, path: str, body: dict[str, Any]) -> socket.socket:
    """Sends a request and returns its connection."""
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port))
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection
