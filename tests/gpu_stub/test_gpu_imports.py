"""A package that initializes CUDA while it is imported costs a start its fork, but no start fails."""

import signal
from types import ModuleType

from tests.gpu_stub.gpu_server import EAGER, GpuServer
from tests.vllm_engine.plugin import write_entry_point

_PLUGIN = """
import ctypes
ctypes.CDLL("libcuda.so.1").cuInit(0)
def install(): pass
"""


def test_a_plugin_that_initializes_cuda_when_it_is_imported(tmp_path):
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "cuda_plugin.py").write_text(_PLUGIN)
    write_entry_point(plugins, ModuleType("cuda_plugin"))
    for turn in range(3):
        with GpuServer("ours", *EAGER, folder=tmp_path, environment={"PYTHONPATH": str(plugins)}) as server:
            assert server.wait_ready().generate()
            [engine] = server.titled("EngineCore")
            assert engine.pid in server.initialized()
            assert server.is_forked(engine) or turn < 2, server.log
            assert server.terminate(signal.SIGTERM) == 0
        assert "Re-initialize" not in server.log
