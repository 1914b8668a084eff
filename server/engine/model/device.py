"""The device of the engine: the GPU if there is one, else the CPU."""

import logging
from pathlib import Path

import torch
from transformers import PreTrainedModel

from server.errors import EngineMemoryError, EngineStartError

logger = logging.getLogger(__name__)

_GPU_DEVICE = Path("/dev/nvidiactl")
_GIB = 1 << 30


def choose_device() -> torch.device:
    """The GPU if there is one, else the CPU.

    Called in the engine process only, after the fork: it creates the CUDA context, which is of no use to a
    forked child.

    Raises:
        EngineStartError: there is a GPU, but CUDA cannot use it.
    """
    if not torch.cuda.is_available():
        if _GPU_DEVICE.exists() and not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
            logger.warning("there is a GPU, but torch %s cannot use it: computing on the CPU", torch.__version__)
        return torch.device("cpu")
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.mem_get_info()
    except RuntimeError as err:
        raise EngineStartError(
            f"there is a GPU, but CUDA cannot use it ({' '.join(str(err).split())}): repair the driver, or start "
            "with CUDA_VISIBLE_DEVICES set to nothing to compute on the CPU"
        ) from err
    avoid_cudnn_attention()
    return torch.device("cuda", torch.cuda.current_device())


def avoid_cudnn_attention() -> None:
    """Disables cuDNN's attention, which torch prefers on recent GPUs: it makes a plan for every new length.

    Lengths grow with every token, and a plan takes up to hundreds of milliseconds.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def move_model(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Moves the model to the device.

    Raises:
        EngineMemoryError: the device has no room for it.
    """
    if device.type != "cuda":
        is_there = all(tensor.device == device for tensor in (*model.parameters(), *model.buffers()))
        return model if is_there else model.to(device)
    needed = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    free, total = torch.cuda.mem_get_info(device)
    if needed > free:
        raise EngineMemoryError(describe_lack("the weights take", needed, free, total))
    try:
        return model.to(device)
    except torch.OutOfMemoryError as err:
        raise EngineMemoryError(describe_lack("the weights take", needed, free, total)) from err


def describe_lack(what: str, needed: int, free: int, total: int) -> str:
    """One line with the sizes and possible remedies."""
    return (
        f"{what} {needed / _GIB:.3g} GiB, and {free / _GIB:.3g} of the GPU's {total / _GIB:.3g} GiB are free: "
        "stop other processes on it (nvidia-smi lists them), choose another with CUDA_VISIBLE_DEVICES, or use a "
        "smaller or quantized model"
    )
