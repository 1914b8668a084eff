"""The choice of the renderer by a folder's files; each renderer imports only its own libraries."""

import shutil
import subprocess
import sys

import pytest

from server.config import ModelFiles, RendererConfig
from server.renderers.registry import build_renderer, find_tokenizer_mode
from server.renderers.tokenizers.files import TokenizerLoadError


def test_auto_selects_hf_for_all_other_files(model_path):
    assert find_tokenizer_mode(ModelFiles(model_path, model_path)) == "hf"


@pytest.mark.parametrize("mode", ["auto", "mistral"])
def test_the_mode_chooses_the_renderer(mode, mistral_folders, tmp_path):
    path = shutil.copytree(mistral_folders["tekken_v3"], tmp_path / "model")
    (path / "consolidated.safetensors").touch()
    with build_renderer(ModelFiles(path, path), RendererConfig(tokenizer_mode=mode)) as renderer:
        assert type(renderer).__name__ == "MistralRenderer"


def test_error_for_missing_files_of_a_mode_names_them(tmp_path):
    with pytest.raises(TokenizerLoadError, match=str(tmp_path)):
        build_renderer(ModelFiles(tmp_path, tmp_path), RendererConfig(tokenizer_mode="mistral"))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "libraries"),
    [("real", ""), ("tekken_v3", "mistral_common tiktoken")],
)
def test_a_renderer_imports_no_other_tokenizer_library_and_not_torch(kind, libraries, files_of):
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from server.config import ModelFiles, RendererConfig\n"
        "from server.renderers.prompts import ChatOptions\n"
        "from server.renderers.registry import build_renderer\n"
        "path, mode = Path(sys.argv[1]), sys.argv[2]\n"
        "with build_renderer(ModelFiles(path, path), RendererConfig(tokenizer_mode=mode)) as renderer:\n"
        "    prompt = renderer.render_chat([{'role': 'user', 'content': 'hi'}], ChatOptions())\n"
        "    renderer.create_detokenizer().append(prompt.token_ids)\n"
        "print(*sorted({'mistral_common', 'tiktoken', 'torch'} & set(sys.modules)))\n"
    )
    files, mode = files_of[kind]
    done = subprocess.run([sys.executable, "-c", script, files.path, mode], capture_output=True, text=True, timeout=120)
    assert done.stdout == f"{libraries}\n", done.stderr
