"""`vllm-cli bake` with the embedded engine: the folder, later starts with it, failures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from startup.timeline.history import read_starts
from tests.e2e.server_process import ServerProcess
from tests.llamas import save_tiny_llama

ROOT = Path(__file__).parents[3]


def _bake(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vllm_cli", "bake", *map(str, words)],
        env={**os.environ, **variables}, cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def _modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def baked(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image") / "baked"
    secrets = ("--api-key", "s3same-1", "s3same-2", "--hf-tok", "s3same-3")
    config = folder.with_name("config.yaml")
    keys = folder.with_name("keys")
    keys.write_text("s3same-5\n")
    config.write_text(f"api-key: [s3same-4]\napi-key-file: {keys}\nport: 8001\nssl-certfile: /missing.pem\n")
    words = ("--engine", "embedded", "--output", folder, "--json", *secrets, "--port", 8000, "--config", config)
    done = _bake(model, *words)
    assert done.returncode == 0, done.stderr
    parts = {part["name"] for part in json.loads(done.stdout)["parts"]}
    assert parts == {"start history", "package scan", "import file", "pages to prefetch"}
    return folder


def test_the_manifest_has_the_flags_of_later_starts_and_no_key(baked):
    words = json.loads((baked / "manifest.json").read_text())["words"]
    assert words == [words[0], "--engine", "embedded", "--config", str(baked.with_name("config.yaml"))]
    assert [path for path in baked.rglob("*") if path.is_file() and b"s3same" in path.read_bytes()] == []


def test_the_folder_is_complete_and_only_its_owner_can_write_to_it(baked):
    assert sorted(path.name for path in baked.parent.iterdir()) == ["baked", "config.yaml", "keys"]
    assert sorted(path.name for path in baked.iterdir()) == ["cache", "manifest.json", "pages.json"]
    assert _modes(baked) == {0o755, 0o644}


@pytest.mark.thorough
def test_a_later_start_uses_it_and_writes_only_to_the_cache_folder(baked, model, tmp_path, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in baked.rglob("*")}
    variables = {"VCLI_BAKED": str(baked), "VLLM_CACHE_ROOT": str(tmp_path / "cache")}
    with ServerProcess([str(model), "--engine", "embedded"], environment=variables):
        pass  # it was ready
    cache = tmp_path / "cache" / "vllm_cli"
    assert (cache / "history.jsonl").exists()
    assert not list(cache.glob("imports/*.json"))  # the package scan is the baked one
    assert {path: path.stat().st_mtime_ns for path in baked.rglob("*")} == before
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    own, of_the_build = read_starts()
    assert own.key == of_the_build.key


@pytest.mark.thorough
def test_an_untrusted_folder_is_one_warning(model, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    tmp_path.chmod(0o777)
    variables = {"VCLI_BAKED": str(tmp_path), "VLLM_CACHE_ROOT": str(tmp_path / "cache")}
    with ServerProcess([str(model), "--engine", "embedded"], environment=variables) as server:
        assert server.log.count(f"so {tmp_path} is not used") == 1


@pytest.mark.thorough
def test_a_failed_start_leaves_nothing(tmp_path):
    broken = save_tiny_llama(tmp_path / "model")
    (broken / "model.safetensors").write_bytes(b"x")
    done = _bake(broken, "--engine", "embedded", "--output", tmp_path / "out" / "baked")
    assert done.returncode == 3
    assert "the start failed" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [("model", "--no-such-flag"), ("--engine", "nonsense"), ("--max-model-len", "much"), ("--timeout", "0")],
    ids=" ".join,
)
def test_wrong_words_are_exit_code_2(words, tmp_path):
    done = _bake(*words, "--output", tmp_path / "baked", VCLI_ENGINE="embedded")
    assert done.returncode == 2, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_only_a_baked_folder_is_replaced(tmp_path, model):
    (tmp_path / "mine").touch()
    done = _bake(model, "--engine", "embedded", "--output", tmp_path)
    assert done.returncode == 2
    assert "was not written by `vllm-cli bake`" in done.stderr
    assert (tmp_path / "mine").exists()
