"""vLLM's image with and without vllm-cli in it, and vLLM's CUDA build on the stand-in for GPUs."""

from pathlib import Path

import pytest

from tests.containers.podman import STAND_IN, Container, mount_of
from tests.gpu_stub.gpu_server import PYTHON as CUDA_PYTHON
from tests.gpu_stub.gpu_server import STUB, gpu_environment
from tests.support.peer_vllm import PYTHON

_READY_S = 1200.0
_WORDS = ("/model", "--enforce-eager", "--max-model-len=512")
_OPTIONS = ("--user=4711:0", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--shm-size=1g")
_VARIABLES = {"HOME": "/tmp", "USER": "someone", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


def _server(image: str, *options: str, variables: dict[str, str]) -> Container:
    settings = [f"--env={name}={value}" for name, value in variables.items()]
    return Container(image, *_WORDS, options=(*_OPTIONS, *settings, *options), is_awaited=False)


@pytest.mark.parametrize("is_ours", [False, True], ids=["as it is", "with the page's lines"])
def test_the_image_of_vllm_serves_by_its_entrypoint(is_ours, vllm_image, mounted):
    """With the page's lines, `vllm serve` is vllm-cli, which has /livez."""
    with _server(vllm_image if is_ours else STAND_IN, mount_of(PYTHON), mounted, variables=_VARIABLES) as server:
        server.wait(lambda: server.health() == 200, _READY_S)
        server.assert_serves()
        assert server.ask("/livez").status == (200 if is_ours else 404)
        if is_ours:
            server.assert_stops()
        else:
            assert server.terminate() == 0  # vLLM logs a traceback


@pytest.mark.skipif(not CUDA_PYTHON.exists(), reason="`make gpu-env` has not run")
def test_the_cuda_build_serves_for_any_user_on_a_read_only_root(vllm_image, mounted):
    """Without kernels, so the text means nothing."""
    variables = _VARIABLES | gpu_environment(Path("/tmp"))
    with _server(
        vllm_image, mount_of(CUDA_PYTHON), f"--volume={STUB}:{STUB}:ro", mounted, variables=variables
    ) as server:
        server.wait(lambda: server.health() == 200, _READY_S)
        assert server.ask("/v1/completions", {"prompt": "Once", "max_tokens": 4}).status == 200, server.log
        server.assert_stops()
