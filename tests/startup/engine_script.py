"""Starts an engine process the way the launcher does; run by test_engine_process.py as a program of its own."""

import asyncio
import json
import sys
import time
from pathlib import Path

from server.config import EngineConfig, ModelFiles
from server.engine.client import EngineClient
from server.errors import EngineStartError
from server.types import SamplingParams
from startup import engine_process
from startup.log_options import LogOptions
from startup.start_method import use_start_method


def main(model: Path, method: str, mode: str | None) -> int:
    context = use_start_method(method)
    files = ModelFiles(model, model)
    engine_process.prepare(context, files)
    if mode == "--modules":
        process = context.Process(target=_tell_modules)
        process.start()
        process.join()
        return 0
    engine = engine_process.start_engine(context, files, EngineConfig(max_num_seqs=2), logs=LogOptions(level="INFO"))
    if mode == "--leave-early":
        print(engine.pid, flush=True)
        return 0
    try:
        return asyncio.run(_use(engine, mode))
    except EngineStartError as err:
        print(err)
        return 1
    finally:
        engine.close()


def _tell_modules() -> None:
    """Runs in the new process: what was there before its own first import."""
    wanted = ("torch", "server.engine.build", "transformers.models.llama.modeling_llama")
    print(json.dumps([name for name in wanted if name in sys.modules]), flush=True)


async def _use(engine: engine_process.EngineProcess, mode: str | None) -> int:
    client = EngineClient(engine.connection)
    await client.start()
    info = await client.wait_loaded(200)
    if mode == "--hang":
        print("ready", flush=True)
        time.sleep(120)
    token_ids: list[int] = []
    async for output in client.generate("a", [1, 2, 3], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)):
        token_ids += output.token_ids
    await client.close()
    await asyncio.to_thread(engine.close)
    preloaded = any(name == "forkserver:preload_imports" for name, _, _ in info.spans)
    print(json.dumps({"token_ids": token_ids, "exitcode": engine.exitcode, "preloaded": preloaded}))
    return 0


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(Path(arguments[0]), arguments[1], arguments[2] if len(arguments) > 2 else None))
