"""Detection of models that accept images."""

import json
from pathlib import Path
from typing import Any

import pytest

from server.model_files.vision_models import VISION_MODEL_TYPES, accepts_images


@pytest.mark.parametrize("model_type", sorted(VISION_MODEL_TYPES))
def test_tested_vision_models_accept_images(tmp_path: Path, model_type: str) -> None:
    _write(tmp_path, {"model_type": model_type, "vision_config": {}})
    assert accepts_images(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama"},
        {"model_type": "llava"},
        {"model_type": "gemma3", "vision_config": {}},
        {"model_type": "paligemma", "vision_config": {}},
        {"model_type": "mllama", "vision_config": {}},
        {"model_type": "qwen3_vl", "vision_config": {}},
        {"model_type": None, "vision_config": {}},
        {"model_type": ["llava"], "vision_config": {}},
        [],
        {},
    ],
)
def test_other_models_do_not_accept_images(tmp_path: Path, config: Any) -> None:
    _write(tmp_path, config)
    assert not accepts_images(tmp_path)


def test_a_broken_folder_does_not_accept_images(tmp_path: Path) -> None:
    assert not accepts_images(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert not accepts_images(tmp_path)


def _write(folder: Path, config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))
