"""/dev/shm without room: the embedded engine does not need it, and the log reports it."""

from pathlib import Path

import pytest

from tests.e2e.chaos.small_disk import SmallDisk
from tests.e2e.server_process import ServerProcess

_SHM = Path("/dev/shm")


@pytest.mark.parametrize(
    "method",
    ["forkserver", pytest.param("spawn", marks=pytest.mark.slow), pytest.param("fork", marks=pytest.mark.slow)],
)
def test_server_starts_and_serves_without_shared_memory(model_path, method):
    with SmallDisk(_SHM, 4096, num_files=1) as disk:
        disk.fill()
        environment = {"VLLM_WORKER_MULTIPROC_METHOD": method}
        with ServerProcess([str(model_path)], launcher=disk.launcher, environment=environment) as server:
            assert server.complete(max_tokens=4) == 200
            assert "/dev/shm has 0 bytes free" in server.log
            assert server.terminate() == 0
            assert "Traceback" not in server.log
        assert [path.name for path in disk.path_inside(_SHM).iterdir()] == ["ballast"]
