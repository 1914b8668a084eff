"""Starts the workers, each with its own OpenMP variables, and sends them requests."""

import importlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait

from vllm import platforms
from vllm.config import EngineConfig
from vllm.tracing import instrument
from vllm.utils.system_utils import get_mp_context

IMPORTED_IN = os.getpid()


class MultiprocExecutor:
    @instrument(span_name="Executor init")
    def __init__(self, config: EngineConfig) -> None:
        context = get_mp_context()
        target = importlib.import_module(platforms.worker_module()).WorkerProc.worker_main
        self._lock = threading.Lock()
        self.connections = []
        self.processes = []
        for rank in range(config.args.tensor_parallel_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=target, args=(config, rank, theirs), name=f"VllmWorker-{rank}", daemon=True
            )
            with _openmp_variables(rank):
                process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)
        try:
            self._wait_until_ready()
        except RuntimeError:
            self._end_workers()
            raise

    def _wait_until_ready(self) -> None:
        for connection, process in zip(self.connections, self.processes, strict=True):
            wait([connection, process.sentinel])
            try:
                connection.recv()
            except EOFError:
                text = "WorkerProc initialization failed due to an exception in a background process."
                raise RuntimeError(text) from None

    def _end_workers(self) -> None:
        """Ends workers that still run before this process ends, as vLLM does."""
        for process in self.processes:
            if process.is_alive():
                process.terminate()

    def ask_all(self, request: dict[str, object]) -> list[object]:
        with self._lock:
            for connection in self.connections:
                connection.send(request)
            return [connection.recv() for connection in self.connections]

    def call_all(self, method: str, **arguments: object) -> None:
        """Calls a method of all workers. Raises the first error of a worker."""
        for answer in self.ask_all({"what": method, **arguments}):
            if isinstance(answer, Exception):
                raise answer

    def is_idle(self) -> bool:
        """Waits until no request runs."""
        with self._lock:
            return True

    def shutdown(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()


@contextmanager
def _openmp_variables(rank: int) -> Iterator[None]:
    cpus = sorted(os.sched_getaffinity(0))
    before = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = str(rank + 1)
    os.environ["GOMP_CPU_AFFINITY"] = str(cpus[rank % len(cpus)])
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
