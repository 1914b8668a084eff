"""A kept tokenizer is used once, only as long as no file of its folder has changed, and without threads."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.config import ModelFiles, RendererConfig
from server.renderers.registry import build_renderer, keep_tokenizer_of
from server.renderers.tokenizers.files import TokenizerLoadError
from server.renderers.tokenizers.loading import _kept, keep_tokenizer, load_tokenizer

_KEEP_AND_FORK = """
import json, os, sys
from pathlib import Path
from server.config import ModelFiles, RendererConfig
from server.renderers.registry import build_renderer, keep_tokenizer_of
from server.renderers.prompts import TextOptions

def count():
    return len(os.listdir("/proc/self/task"))

files = ModelFiles(Path(sys.argv[1]), Path(sys.argv[1]))
before = count()
keep_tokenizer_of(files)
after = count()
pid = os.fork()
if pid == 0:
    with build_renderer(files, RendererConfig()) as renderer:
        renderer.warm_up()
        print(json.dumps([before, after, renderer.render_text("Hello", TextOptions()).token_ids]), flush=True)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.fixture
def folder(tokenizer_folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tokenizer_folders["byte_level"], tmp_path / "model"))


def test_a_kept_tokenizer_is_used_once(folder):
    keep_tokenizer(folder)
    kept = _kept[folder.resolve()][1]
    assert load_tokenizer(folder) is kept
    assert load_tokenizer(folder) is not kept


def test_it_is_found_by_another_path_to_the_folder(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    keep_tokenizer(folder)
    kept = _kept[folder.resolve()][1]
    assert load_tokenizer(tmp_path / "link") is kept


@pytest.mark.parametrize("change", ["write", "replace", "add", "remove", "template"])
def test_it_is_not_used_after_a_change_of_its_folder(folder, change):
    keep_tokenizer(folder)
    kept = _kept[folder.resolve()][1]
    config = folder / "tokenizer_config.json"
    if change == "write":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token": "<unk>"}))
    elif change == "replace":
        times = config.stat()
        other = folder.parent / "other"
        other.write_bytes(config.read_bytes())
        os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
        other.replace(config)
    elif change == "add":
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    elif change == "remove":
        config.unlink()
    else:
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    assert load_tokenizer(folder) is not kept


def test_a_models_own_code_is_not_replaced_by_a_kept_tokenizer(folder):
    keep_tokenizer(folder)
    kept = _kept[folder.resolve()][1]
    assert load_tokenizer(folder, trust_remote_code=True) is not kept
    assert load_tokenizer(folder) is kept


def test_a_broken_folder_keeps_nothing(tmp_path):
    with pytest.raises(TokenizerLoadError):
        keep_tokenizer_of(ModelFiles(tmp_path, tmp_path))
    assert tmp_path.resolve() not in _kept


@pytest.mark.thorough
def test_a_fork_uses_it_and_keeping_starts_no_thread(folder):
    run = subprocess.run([sys.executable, "-c", _KEEP_AND_FORK, folder], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    before, after, token_ids = json.loads(run.stdout)
    assert after == before
    with build_renderer(ModelFiles(folder, folder), RendererConfig()) as renderer:
        assert token_ids == renderer.tokenizer.encode("Hello", add_special_tokens=True)
