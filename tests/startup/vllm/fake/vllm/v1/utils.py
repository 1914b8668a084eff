"""Starts several API servers as processes that accept on one socket, or a program as the only server."""

import argparse
import multiprocessing
import socket
import subprocess
from typing import Any

from vllm.config import EngineConfig
from vllm.entrypoints.launcher import run_api_server


class APIServerProcessManager:
    def __init__(self, sock: socket.socket, num_servers: int, config: EngineConfig, engine_address: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.processes = [
            context.Process(
                target=run_api_server, args=(sock, config, engine_address, index), name=f"ApiServer_{index}"
            )
            for index in range(num_servers)
        ]
        for process in self.processes:
            process.start()

    def shutdown(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()


class RustFrontendProcessManager:
    """Starts the program. Engines connect to its listener once they are ready."""

    def __init__(
        self,
        binary_path: str,
        sock: Any,
        args: argparse.Namespace,
        input_listener: socket.socket,
    ) -> None:
        inherited_fds = [sock.fileno(), input_listener.fileno()]
        cmd = [binary_path, "frontend", "--listen-fd", str(inherited_fds[0]), "--input-fd", str(inherited_fds[1])]
        cmd += ["--shutdown-timeout", str(args.shutdown_timeout)]
        self._proc = subprocess.Popen(cmd, pass_fds=inherited_fds)
        self.processes = [_SubprocessWrapper(self._proc)]

    def shutdown(self, timeout: float | None = None) -> None:
        (process,) = self.processes
        process.terminate()
        try:
            self._proc.wait(max(timeout or 0.0, 5.0))
        except subprocess.TimeoutExpired:
            self._proc.kill()


class _SubprocessWrapper:
    name = "RustFrontend"

    def __init__(self, process: Any) -> None:
        self._proc = process

    def is_alive(self) -> bool:
        return self._proc.poll() is None

    def terminate(self) -> None:
        self._proc.terminate()
