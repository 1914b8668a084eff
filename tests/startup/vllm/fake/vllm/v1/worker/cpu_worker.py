"""A worker: loads a model and answers a prompt with the worker's rank."""

import importlib
import logging
import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import huggingface_hub.constants  # noqa: F401 - a library that reads variables on import
from vllm import process_state
from vllm.config import EngineConfig
from vllm.crash import crash_at
from vllm.logger import set_process_name
from vllm.model_executor.models.registry import Inspected, ModelRegistry
from vllm.tracing import instrument
from vllm.utils.system_utils import set_process_title

if "FAKE_VLLM_TORCH" in os.environ:
    import torch  # noqa: F401

IMPORTED_IN = os.getpid()


class WorkerProc:
    def __init__(self, config: EngineConfig, rank: int) -> None:
        self._rank = rank
        self.inspected: Inspected | None = None
        self._missing: set[str] = set()
        """The data that is not on the worker's device."""
        self._level = 0
        self.load_model(config)

    @instrument(span_name="Loading (CPU)")
    def load_model(self, config: EngineConfig) -> None:
        crash_at(f"worker {self._rank}")
        for name in config.args.worker_imports:
            importlib.import_module(name)
        if config.architecture is not None:
            self.inspected = ModelRegistry.inspect(config.architecture)
            importlib.import_module(self.inspected.module)
        if "FAKE_VLLM_COMPILES" in os.environ:
            self._compile(config)

    def _compile(self, config: EngineConfig) -> None:
        from vllm.compilation.decorators import CompiledModel
        from vllm.config.vllm import ModelConfig, SchedulerConfig, VllmConfig
        from vllm.v1.worker.worker_base import WorkerWrapperBase

        model = str(config.args.model)
        text = Path(model, "config.json").read_text()
        vllm_config = VllmConfig(ModelConfig(model, text), SchedulerConfig(8))
        WorkerWrapperBase(vllm_config).init_device()
        CompiledModel(vllm_config).load_or_compile()
        crash_at("cache blocks")

    @staticmethod
    def worker_main(config: EngineConfig, rank: int, connection: Connection) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        set_process_title(f"Worker_{rank}")
        set_process_name(f"Worker_{rank}")
        print(f"{multiprocessing.current_process().name} prints a line", flush=True)
        logging.getLogger("vllm.worker").info("worker %d starts", rank)
        if config.args.worker_prints_error:
            print("a library of the worker prints an error", file=sys.stderr)
        try:
            worker = WorkerProc(config, rank)
        except Exception:
            logging.getLogger("vllm.worker").exception("WorkerProc failed to start.")
            return
        connection.send("ready")
        with suppress(EOFError):  # the engine has exited
            while True:
                connection.send(worker.answer(connection.recv()))

    def answer(self, request: dict[str, Any]) -> object:
        try:
            return self._answer(**request)
        except Exception as err:  # noqa: BLE001 - the engine raises it
            return err

    def sleep(self, level: int) -> None:
        """Waits at the gate. Fails halfway if the file FAKE_VLLM_SLEEP_FAILS exists."""
        _wait_at_gate()
        self._level = level
        self._missing = {"weights", "kv_cache"}
        if Path(os.environ.get("FAKE_VLLM_SLEEP_FAILS", "")).is_file():
            raise RuntimeError("CUDA error: out of memory")

    def wake_up(self, tags: list[str] | None = None) -> None:
        """Waits at the gate. After level 2, the worker does not have the model's weights."""
        _wait_at_gate()
        self._missing -= set(tags or ("weights", "kv_cache"))
        if self._level == 2 and "weights" not in self._missing:
            self._missing.add("content of the weights")
        self._level = 0

    def reload_weights(self) -> None:
        self._missing.remove("content of the weights")

    def _answer(self, what: str, **arguments: Any) -> object:
        if what == "state":
            return {**process_state.describe(), "inspected": self.inspected}
        if what != "completion":
            return getattr(self, what)(**arguments)
        without = f" without {sorted(self._missing)}" if self._missing else ""
        return f"{arguments['prompt']} was read by worker {self._rank}{without}"


def _wait_at_gate() -> None:
    """Waits until the file FAKE_VLLM_SLEEP_GATE does not exist."""
    while Path(os.environ.get("FAKE_VLLM_SLEEP_GATE", "")).is_file():
        time.sleep(0.01)
