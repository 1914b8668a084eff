"""Fixtures of the engine's tests. The tests use one thread and silence transformers' log."""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

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
    """A tiny float32 Llama for reference outputs. Tests must not change it."""
    return build_model("llama", PACKED["llama"])


@pytest.fixture
def llama(plain_llama: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model for an engine, which may change the copy."""
    return copy.deepcopy(plain_llama)


@pytest.fixture(scope="session")
def saved_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same model, without a tokenizer. Tests must not change it."""
    return save_model(tmp_path_factory.mktemp("models") / "llama", "llama", PACKED["llama"])


@pytest.fixture
def llama_copy(saved_llama: Path, tmp_path: Path) -> Path:
    """A copy of the folder that a test may change."""
    return Path(shutil.copytree(saved_llama, tmp_path / "model"))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Uses one thread. A second thread is no faster for tiny matrices, and slower on shared processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
