"""Fixtures of the tests that need a GPU (`make test-cuda`); without a GPU they are skipped."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.cuda import gpu
from tests.server.engine.sampling.byte_tokenizer import VOCAB_SIZE, build_byte_tokenizer
from tests.server.engine.tiny_models import PACKED, build_model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("cuda") and (reason := gpu.why_no_gpu()):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """A tiny float32 Llama with a token per byte, on the CPU."""
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

    return AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32).to(gpu.DEVICE).eval()
