"""The engine process: starts workers and answers API servers."""

import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection, Listener
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from vllm import process_state
from vllm.config import EngineConfig
from vllm.crash import crash_at
from vllm.logger import set_process_name
from vllm.model_executor.models.registry import Inspected, ModelRegistry
from vllm.utils.network_utils import get_file_store_init_method, get_open_zmq_ipc_path
from vllm.utils.system_utils import set_process_title
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

IMPORTED_IN = os.getpid()


class EngineCore:
    def __init__(self, executor: MultiprocExecutor) -> None:
        self._executor = executor
        self.batch_queue = None

    def is_sleeping(self) -> bool:
        return self._executor.is_idle()

    def sleep(self, level: int, mode: str) -> None:
        assert mode == "wait"
        self._executor.call_all("sleep", level=level)

    def wake_up(self, tags: list[str] | None) -> None:
        self._executor.call_all("wake_up", tags=tags)

    def collective_rpc(self, method: str) -> None:
        self._executor.call_all(method)

    def shutdown(self) -> None:
        self._executor.shutdown()


class EngineCoreProc(EngineCore):
    def __init__(self, executor: MultiprocExecutor, config: EngineConfig) -> None:
        super().__init__(executor)
        self.vllm_config = config
        self.process_input_queue_block = True

    def has_work(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def run_busy_loop(self) -> None: ...

    def _process_input_queue(self) -> None:
        block = self.process_input_queue_block
        assert block

    def _handle_client_request(self, kind: bytes, request: object) -> None: ...

    @staticmethod
    def run_engine_core(config: EngineConfig, ready: Connection) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        set_process_title("EngineCore")
        set_process_name("EngineCore")
        print("EngineCore prints a line", flush=True)
        logging.getLogger("vllm.engine").info("the engine\nstarts")
        try:
            crash_at("engine")
            if config.args.engine_fails:
                raise RuntimeError("the engine cannot be initialised")
            inspected = ModelRegistry.inspect(config.architecture) if config.architecture else None
            for address in (get_open_zmq_ipc_path(), get_file_store_init_method()):
                Path(address.partition("://")[2]).touch()  # nobody removes them
            memory = SharedMemory(create=True, size=1)
            executor = MultiprocExecutor(config)
        except Exception:
            logging.getLogger("vllm.engine").exception("EngineCore failed to start.")
            raise
        engine_core = EngineCoreProc(executor, config)
        try:
            if (gate := config.args.gate) is not None:
                print("EngineCore waits at its gate", flush=True)
            while gate is not None and not Path(gate).exists():
                time.sleep(0.01)
            with Listener(f"\0fake-vllm-{os.getpid()}", family="AF_UNIX") as listener:
                ready.send(listener.address)
                while True:
                    connection = listener.accept()
                    threading.Thread(target=_answer, args=(engine_core, connection, inspected), daemon=True).start()
        finally:
            engine_core.shutdown()
            memory.unlink()


def _answer(engine_core: EngineCore, connection: Connection, inspected: Inspected | None) -> None:
    executor = engine_core._executor
    with suppress(EOFError, OSError), connection:
        request = connection.recv()
        if request["what"] == "utility":
            try:
                result = getattr(engine_core, request["method"])(*request["args"])
            except Exception as err:  # noqa: BLE001 - the caller raises it
                result = err
            connection.send(result)
            return
        try:
            crash_at("request")
        except Exception:
            logging.getLogger("vllm.engine").exception("EngineCore encountered a fatal error.")
            os._exit(1)
        answers = executor.ask_all(request)
        if request["what"] == "state":
            connection.send({"engine": {**process_state.describe(), "inspected": inspected}, "workers": answers})
        else:
            connection.send(answers[0])
