"""Two nodes of vLLM's own with a GPU each: both start twice in their homes, answer, and end with code 0."""

import signal

from tests.gpu_stub.gpu_server import EAGER, GpuServer
from tests.support.ports import free_port


def test_two_nodes_start_twice_and_end(tmp_path):
    homes = [tmp_path / str(rank) for rank in range(2)]
    for home in homes:
        home.mkdir()
    for _ in range(2):
        port = str(free_port())
        words = ("--pipeline-parallel-size", "2", "--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", port)
        head, other = (
            GpuServer(
                "ours",
                *EAGER,
                *words,
                "--node-rank",
                str(rank),
                *more,
                folder=home,
                environment={"STUB_GPUS": "2", "CUDA_VISIBLE_DEVICES": str(rank)},
            )
            for rank, (home, more) in enumerate(zip(homes, ((), ("--headless",)), strict=True))
        )
        with other, head:
            assert len({head.wait_ready().generate() for _ in range(4)}) == 1
            for rank, node in enumerate((head, other)):
                [worker] = node.assert_only([f"Worker_PP{rank}"])
                assert node.is_forked(worker)
            assert other.health() == 0, "a headless node has no port"
            assert head.terminate(signal.SIGTERM) == 0
            assert other.terminate(signal.SIGTERM) == 0
