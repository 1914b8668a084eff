"""The engine computes on the GPU if possible, else logs or reports why not."""

import logging
from collections.abc import Iterator

import pytest
import torch

from base.errors import EngineStartError
from server.engine.model import model_loading
from server.engine.model.model_loading import avoid_cudnn_attention, choose_device, describe_lack

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU that CUDA can use")


@pytest.fixture
def _cudnn_attention() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


@NO_GPU
def test_without_a_gpu_the_engine_uses_the_cpu(caplog):
    assert choose_device() == torch.device("cpu")


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built for GPUs")
def test_a_gpu_that_this_torch_cannot_use_is_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(model_loading, "_GPU_DEVICE", tmp_path)
    with caplog.at_level(logging.WARNING, logger="server.engine.model.model_loading"):
        assert choose_device() == torch.device("cpu")
    assert f"torch {torch.__version__} cannot use it: computing on the CPU" in caplog.text


@NO_GPU
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")
def test_a_driver_failure_is_reported_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # as NVML reports
    with pytest.raises(EngineStartError, match="CUDA cannot use it .*CUDA_VISIBLE_DEVICES set to nothing") as caught:
        choose_device()
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_cudnn_attention")
def test_cudnn_attention_is_disabled():
    torch.backends.cuda.enable_cudnn_sdp(True)
    avoid_cudnn_attention()
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_lack_of_memory_is_described_with_the_sizes():
    assert describe_lack("the weights take", 16 << 30, 5 << 30, 24 << 30).startswith(
        "the weights take 16 GiB, and 5 of the GPU's 24 GiB are free: "
    )
