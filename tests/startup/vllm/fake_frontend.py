"""Replaces `vllm-rs`: serves the listening socket that it inherits once an engine has registered.

Like `vllm-rs`, it ends only at a signal, after it has finished its requests.
"""

import os
import socket
import sys
import time
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import uvicorn


class _Engine:
    def __init__(self, address: bytes) -> None:
        self._address = address

    def ask(self, request: dict[str, str]) -> Any:
        with Client(self._address) as connection:  # type: ignore[arg-type]
            connection.send(request)
            return connection.recv()


def _registration(fd: int) -> bytes:
    connection, _ = socket.socket(fileno=fd).accept()
    with connection:
        return connection.recv(4096)


def rust_variables(folder: Path) -> dict[str, str]:
    """Writes an executable copy of this file. Returns the variables with which vLLM uses it."""
    program = folder / "vllm-rs"
    program.write_text(f"#!{sys.executable}\n{Path(__file__).read_text()}")
    program.chmod(0o755)
    return {"VLLM_USE_RUST_FRONTEND": "1", "VLLM_RUST_FRONTEND_PATH": str(program)}


def main() -> None:
    from vllm.entrypoints.launcher import build_app

    options = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    app = build_app(_Engine(_registration(int(options["--input-fd"]))), None)
    if gate := os.environ.get("FAKE_FRONTEND_GATE"):
        print("the frontend waits", flush=True)
        while not Path(gate).exists():
            time.sleep(0.01)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    server.run(sockets=[socket.socket(fileno=int(options["--listen-fd"]))])


if __name__ == "__main__":
    main()
