"""The files of a prefetch, in order."""

import subprocess
import sys
from pathlib import Path

from server.config import ModelFiles
from startup.model.prefetch_plan import plan_files, plan_libraries


def names(files: ModelFiles) -> list[str]:
    return [path.name for path in plan_files(files)]


def test_the_tokenizer_comes_first_and_shards_in_load_order(tmp_path: Path) -> None:
    for name in ("model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors", "config.json", "notes.md"):
        (tmp_path / name).touch()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").touch()
    assert names(ModelFiles(tmp_path, tmp_path / "words")) == [
        "tokenizer.json",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_torch_files_are_read_without_safetensors(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    assert names(ModelFiles(tmp_path, tmp_path)) == ["pytorch_model.bin"]


def test_each_file_of_the_real_model_is_planned_once(model_path: Path) -> None:
    planned = plan_files(ModelFiles(model_path, model_path))
    assert len(planned) == len(set(planned))
    assert planned[-1].name == "model.safetensors"
    assert model_path / "tokenizer.json" in planned


def test_a_missing_folder_has_nothing_to_read(tmp_path: Path) -> None:
    assert plan_files(ModelFiles(tmp_path / "gone", tmp_path / "gone")) == ()


def test_libraries_of_torch_are_found_without_importing_it() -> None:
    script = (
        "import sys; from startup.model.prefetch_plan import plan_libraries; print(*plan_libraries());"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    found = [Path(word).name for word in result.stdout.split()]
    assert "libtorch_cpu.so" in found
    assert all(path.is_file() for path in plan_libraries())
