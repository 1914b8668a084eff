"""Where the engine computes: on the GPU where there is one, else on the CPU."""

import logging
from pathlib import Path

import torch
from transformers import PreTrainedModel

from server.errors import EngineMemoryError, EngineStartError

logger = logging.getLogger(__name__)

_GPU_DEVICE = Path("/dev/nvidiactl")
_GIB = 1 << 30


def choose_device() -> torch.device:
    """The GPU, where there is one, else the CPU.

    Only in the engine process, and after the fork: this creates the CUDA context, which no child could use.

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
            f"there is a GPU, but CUDA cannot use it ({' '.join(str(err).split())}): mend the driver, or start with "
            "CUDA_VISIBLE_DEVICES set to nothing to compute on the CPU"
        ) from err
    avoid_cudnn_attention()
    return torch.device("cuda", torch.cuda.current_device())


def avoid_cudnn_attention() -> None:
    """torch prefers cuDNN's attention on recent GPUs, which makes a plan for every length that it has not seen.

    Lengths grow with every token, and a plan takes up to hundreds of milliseconds.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def move_model(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on the device.

    Raises:
        EngineMemoryError: the device has no room for it.
    """
    if device.type != "cuda":
        return model.to(device)
    needed = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    free, total = torch.cuda.mem_get_info(device)
    if needed > free:
        raise EngineMemoryError(describe_lack("the weights take", needed, free, total))
    try:
        return model.to(device)
    except torch.OutOfMemoryError as err:
        raise EngineMemoryError(describe_lack("the weights take", needed, free, total)) from err


def describe_lack(what: str, needed: int, free: int, total: int) -> str:
    """One line with the numbers and the way out."""
    return (
        f"{what} {needed / _GIB:.3g} GiB, and {free / _GIB:.3g} of the GPU's {total / _GIB:.3g} GiB are free: "
        "end what else uses it (nvidia-smi tells), choose another with CUDA_VISIBLE_DEVICES, or take a smaller or "
        "quantized model"
    )
