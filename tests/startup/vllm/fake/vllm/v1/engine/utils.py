"""Starts the engine process and waits for it."""

from multiprocessing.connection import Connection, wait

from vllm.config import EngineConfig
from vllm.utils.system_utils import get_mp_context, kill_process_tree


class EngineManager:
    """Imports the module of the engine's main function, then starts the engine process."""

    def __init__(self, config: EngineConfig) -> None:
        from vllm.v1.engine.core import EngineCoreProc

        context = get_mp_context()
        self.ready, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=EngineCoreProc.run_engine_core, args=(config, theirs), name="EngineCore")
        self.process.start()
        theirs.close()
        self.address = ""

    def shutdown(self, timeout: float | None = None) -> None:
        self.process.terminate()
        self.process.join(30 if timeout is None else timeout)
        if self.process.is_alive():
            print("the engine is killed", flush=True)
            kill_process_tree(self.process.pid)


class EngineLaunch:
    """A started engine."""

    def __init__(self, config: EngineConfig) -> None:
        self.engine_manager = EngineManager(config)


def launch_engine(config: EngineConfig) -> EngineManager:
    launch = EngineLaunch(config)
    try:
        wait_for_engine_startup(launch.engine_manager.ready, launch)
    except BaseException:
        launch.engine_manager.shutdown()
        raise
    return launch.engine_manager


def wait_for_engine_startup(ready: Connection, launch: EngineLaunch) -> None:
    wait([ready, launch.engine_manager.process.sentinel])
    try:
        launch.engine_manager.address = ready.recv()
    except EOFError:
        text = f"Engine core initialization failed. Failed core proc(s): {launch.engine_manager.process.exitcode}"
        raise RuntimeError(text) from None
