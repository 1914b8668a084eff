"""Starts several API servers as processes that accept on one socket."""

import multiprocessing
import socket

from vllm.config import EngineConfig
from vllm.entrypoints.launchers.launcher import run_api_server


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
