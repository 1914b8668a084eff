"""Starts an engine process as the launcher does. `test_engine_process.py` runs this script."""

import asyncio
import json
import os
import signal
import sys
from multiprocessing import util
from multiprocessing.context import BaseContext
from pathlib import Path

import vllm_cli.own_packages  # noqa: F401 - finds the packages of the next lines
from server.engine.process_link.client import EngineClient
from server.engine.process_link.messages import LENGTH
from server.terms.config import EngineConfig, ModelFiles
from startup.embedded import engine_process
from startup.embedded.engine_process import use_start_method
from startup.logs.options import LogOptions
from startup.processes import forkserver
from startup.reports.crash.output_record import OutputRecord


def main(model: Path, method: str, mode: str) -> int:
    context = use_start_method(method)
    files = ModelFiles(model, model)
    engine_process.prepare(context, files, "text")
    if mode == "--modules":
        process = context.Process(target=_print_modules)  # type: ignore[attr-defined]
        process.start()
        process.join()
        return 0
    if mode == "--statuses":
        return _print_statuses(context, files)
    engine = _start(context, files, EngineConfig(max_num_seqs=2))
    try:
        return asyncio.run(_garble(engine))
    finally:
        engine.close()


def _start(context: BaseContext, files: ModelFiles, config: EngineConfig) -> engine_process.EngineProcess:
    record = OutputRecord(Path(util.get_temp_dir()))
    return engine_process.start_engine(context, files, config, logs=LogOptions(level="INFO"), record=record)


def _print_modules() -> None:
    """Runs in the new process. Prints the modules that were loaded before its own imports."""
    wanted = ("torch", "server.engine.build", "transformers.models.llama.modeling_llama")
    print(json.dumps([name for name in wanted if name in sys.modules]), flush=True)


def _print_statuses(context: BaseContext, files: ModelFiles) -> int:
    """Prints /proc/PID/status of processes that have just started, and then of this process."""
    statuses = []
    os.mkfifo(files.path / "config.json")  # blocks the engine, so that it does not exit before its status is read
    if context.get_start_method() == "forkserver":
        statuses.append(_status(forkserver._this.server.pid))
    engine = _start(context, files, EngineConfig())
    statuses += [_status(engine.pid), _status("thread-self")]
    print(json.dumps(statuses))
    os.kill(engine.pid, signal.SIGKILL)
    engine.close()
    return 0


def _status(pid: object) -> str:
    return Path(f"/proc/{pid}/status").read_text()


async def _garble(engine: engine_process.EngineProcess) -> int:
    client = EngineClient(engine.connection)
    await client.start()
    await client.wait_loaded(200)
    engine.connection.send(LENGTH.pack(1) + b"\xc1")  # a byte that MessagePack never uses
    await asyncio.wait_for(client.dead.wait(), 200)
    await asyncio.to_thread(engine.close)
    print(json.dumps({"exitcode": engine.exitcode}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
