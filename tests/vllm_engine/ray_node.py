"""Runs one node of Ray (`ray start --head`) for vLLM's Ray executor.

Ray is in its own folder .peers/ray (`make peers PEERS=ray`), because vLLM would import an installed Ray in
each process.
"""

import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from tests.support.peer_vllm import PYTHON, ROOT
from tests.support.ports import free_port
from tests.support.waiting import wait_until
from tests.vllm_engine.recording import install_plugin

RAY: Final = ROOT / ".peers" / "ray"
_START: Final = (PYTHON, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats")
_GONE_S: Final = 120.0
_OF_WORKERS: Final = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


class RayNode:
    """A node that runs until the end of the `with` block."""

    def __init__(self, folder: Path) -> None:
        """Creates the folder with the plugin with which vLLM uses this node."""
        self._port = free_port()
        install_plugin(folder, "vllm.platform_plugins", Path(__file__).with_name("ray_platform.py"), "find")
        self.environment = {"PYTHONPATH": f"{folder}{os.pathsep}{RAY}", "RAY_ADDRESS": f"127.0.0.1:{self._port}"}
        """Variables for servers that use this node."""
        self._log = folder / "ray.log"
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        resources = ("--num-cpus", "2", "--num-gpus", "1", "--object-store-memory", str(100 * 2**20))
        where = ("--node-ip-address", "127.0.0.1", "--port", str(self._port), "--include-dashboard", "false")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*_START, *where, *resources],
                env={**os.environ, **_OF_WORKERS, "PYTHONPATH": f"{ROOT}{os.pathsep}{self.environment['PYTHONPATH']}"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(lambda: "Ray runtime started" in self._log.read_text() or self._process.poll() is not None, 600)
        assert self._process.poll() is None, self._log.read_text()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        processes = psutil.Process(self._process.pid).children(recursive=True)
        self._process.terminate()
        self._process.wait(_GONE_S)
        _, left = psutil.wait_procs(processes, _GONE_S)
        for process in left:
            process.kill()
