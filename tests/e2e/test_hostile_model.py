"""The start of a model that contains code fails, and the code does not run."""

import shutil

import pytest

from tests.cli import run_cli
from tests.hostile.checkpoints import pickles, write_code

SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("evil", ["weights", "code"])
def test_a_model_that_contains_code_fails_the_start(model_path, tmp_path, evil):
    folder, marker = tmp_path / "model", tmp_path / "evil-was-here"
    folder.mkdir()
    for name in SMALL_FILES:
        shutil.copy(model_path / name, folder)
    (folder / "pytorch_model.bin").write_bytes(pickles(marker)["archive"])
    if evil == "code":
        write_code(folder, marker)
    done = run_cli("serve", folder, "--port", "0")
    assert done.returncode == 3, done.stderr
    assert not marker.exists()
    assert "Error:" in done.stderr
    assert "Traceback" not in done.stderr
