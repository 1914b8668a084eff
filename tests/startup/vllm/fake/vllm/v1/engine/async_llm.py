"""The API server's side of the engine."""

import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Client, wait
from typing import Any

from vllm.config import EngineConfig
from vllm.system_utils import get_mp_context
from vllm.tracing import instrument

IMPORTED_IN = os.getpid()


class EngineManager:
    """Starts the engine's process, after importing the module of its main function."""

    @instrument(span_name="AsyncMPClient init")
    def __init__(self, config: EngineConfig) -> None:
        from vllm.v1.engine.core import EngineCoreProc

        context = get_mp_context()
        ours, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=EngineCoreProc.run_engine_core, args=(config, theirs), name="EngineCore")
        self.process.start()
        theirs.close()
        try:
            wait([ours, self.process.sentinel])
            self.address: str = ours.recv()
        except EOFError as err:
            raise RuntimeError("Engine core initialization failed") from err
        except BaseException:
            self.shutdown()
            raise

    def watch(self, on_death: Callable[[], None]) -> None:
        def wait_for_it() -> None:
            wait([self.process.sentinel])
            on_death()

        threading.Thread(target=wait_for_it, daemon=True).start()

    def shutdown(self) -> None:
        self.process.terminate()
        self.process.join(30)
        if self.process.is_alive():
            self.process.kill()


class AsyncLLM:
    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, request: dict[str, str]) -> Any:
        with Client(self._address) as connection:
            connection.send(request)
            return connection.recv()
