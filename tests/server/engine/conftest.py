"""Fixtures of the engine's tests: one thread, and transformers' advice kept out of the output."""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from server.engine.linear import LinearPacker
from tests.server.engine.tiny_models import PACKED, build_model, save_model


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers() -> Iterator[None]:
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.set_verbosity(before)
    transformers_logging.enable_progress_bar()


@pytest.fixture(scope="session")
def plain_llama() -> PreTrainedModel:
    """A tiny float32 Llama for reference outputs; no engine may change it."""
    return build_model("llama", PACKED["llama"])


@pytest.fixture
def llama(plain_llama: PreTrainedModel) -> PreTrainedModel:
    """The same model, for an engine to take over."""
    return copy.deepcopy(plain_llama)


@pytest.fixture(scope="session")
def saved_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a folder without a tokenizer; no test may change it."""
    return save_model(tmp_path_factory.mktemp("models") / "llama", "llama", PACKED["llama"])


@pytest.fixture
def llama_copy(saved_llama: Path, tmp_path: Path) -> Path:
    """A copy of the folder that a test may damage."""
    return Path(shutil.copytree(saved_llama, tmp_path / "model"))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from a second thread, and lose much where the processors are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def real_model(model_path: Path) -> PreTrainedModel:
    """SmolLM2-135M-Instruct in bfloat16, its linear layers packed; engines take it over one after the other."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16).eval()
    packer = LinearPacker(model)
    while packer.pack_next():
        pass
    return model


@pytest.fixture(scope="session")
def real_tokenizer(model_path: Path) -> PreTrainedTokenizerBase:
    """The real model's tokenizer with its chat template."""
    return AutoTokenizer.from_pretrained(model_path)
