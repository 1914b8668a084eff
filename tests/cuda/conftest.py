"""Fixtures of tests on a GPU, and the GPU's state. Without a GPU, the tests are skipped (`make test-gpu`)."""

import subprocess
from functools import cache
from pathlib import Path

import psutil
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.server.engine.sampling.byte_tokenizer import VOCAB_SIZE, build_byte_tokenizer
from tests.server.engine.tiny_models import PACKED, build_model

DEVICE = "cuda"
_MEMORY = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
_UNIFIED_MEMORY = "/dev/nvidia-uvm"
"""A process that initializes CUDA opens this file. A process that only reads NVML does not."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("cuda") and (reason := why_no_gpu()):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """A tiny float32 Llama with a token for each byte, on the CPU."""
    return build_model("llama", PACKED["llama"] | {"vocab_size": VOCAB_SIZE, "eos_token_id": 256})


@pytest.fixture(scope="session")
def llama_folder(llama: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model on disk, with its tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    llama.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=build_byte_tokenizer(), eos_token="<end>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_on_gpu(llama_folder: Path) -> PreTrainedModel:
    """The same model, loaded by transformers on the GPU."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32).to(DEVICE).eval()


@cache
def why_no_gpu() -> str | None:
    """The reason why these tests cannot run. None if they can run."""
    from startup.imports.torch_environment import expects_gpu

    if not expects_gpu():
        return "there is no GPU, it is hidden by CUDA_VISIBLE_DEVICES, or torch is built without CUDA"
    import torch

    return None if torch.cuda.is_available() else "CUDA cannot use the GPU"


def used_mib() -> int:
    """GPU memory in use by all processes, in MiB."""
    output = subprocess.run(_MEMORY, capture_output=True, text=True, check=True, timeout=60).stdout
    return sum(int(line) for line in output.split())


def uses_cuda(process: psutil.Process) -> bool:
    """Whether the process has initialized CUDA."""
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith(_UNIFIED_MEMORY):
            return True
    return False
