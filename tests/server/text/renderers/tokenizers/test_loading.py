"""Tokenizers load without torch, and equal AutoTokenizer's. Tokenizers are kept between starts."""

import json
import os
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import (
    MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS,
    TOKENIZER_MAPPING_NAMES,
)
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from server.terms.config import ModelFiles, RendererConfig
from server.text.model_files import TokenizerLoadError
from server.text.renderers.renderer import Renderer
from server.text.renderers.tokenizers import loading as tokenizer_loading
from server.text.renderers.tokenizers.loading import _cached, keep_tokenizer, load_tokenizer
from tests.support.cli import python_output
from tests.support.marks import thorough_but_for

UNIGRAM_TYPES = {"xlm-roberta"}
_CLASSES = {**tokenizer_loading._DEFAULT_CLASS, **tokenizer_loading._FIXED_CLASS}
MODEL_TYPES = sorted(name for name, chosen in _CLASSES.items() if chosen is not None and name not in UNIGRAM_TYPES)
NAMED = [
    None,
    "TokenizersBackend",
    "PreTrainedTokenizerFast",
    "Qwen2TokenizerFast",
    "GPT2Tokenizer",
    "GPTNeoXTokenizer",
]
TEXT = "  The quick\n\nbrown fox: 'jumps' over 12345 dogs, 你好 😀 Größe </s>"


def checkpoint(source: Path, path: Path, config: dict[str, Any] | None, **named: Any) -> Path:
    """A folder with the tokenizer of `source`, but with another class or model type."""
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    settings = json.loads((source / "tokenizer_config.json").read_text()) | named
    (path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def needs_torch(path: Path) -> bool:
    """Whether only AutoTokenizer, which imports torch, can choose the class."""
    return tokenizer_loading._light_class(path) is None


def assert_same_tokenizer(path: Path) -> None:
    ours, reference = load_tokenizer(path), AutoTokenizer.from_pretrained(path, mistral_format=False)
    assert type(ours) is type(reference)
    token_ids = reference.encode(TEXT)
    assert ours.encode(TEXT) == token_ids
    assert ours.decode(token_ids) == reference.decode(token_ids)
    assert ours.special_tokens_map == reference.special_tokens_map
    assert ours.chat_template == reference.chat_template
    assert ours.added_tokens_decoder == reference.added_tokens_decoder
    if isinstance(ours, TokenizersBackend):
        assert ours.backend_tokenizer.to_str() == reference.backend_tokenizer.to_str()


@pytest.mark.parametrize("model_type", thorough_but_for(MODEL_TYPES, "qwen2", "deepseek_v3", "gpt2"))
def test_the_chosen_class_equals_auto_tokenizer_s(model_type, tokenizer_folders, tmp_path):
    for number, class_name in enumerate(NAMED):
        (folder := tmp_path / str(number)).mkdir()
        config = {"model_type": model_type}
        path = checkpoint(tokenizer_folders["byte_level"], folder, config, tokenizer_class=class_name)
        is_version_dependent = model_type in tokenizer_loading._VERSION_DEPENDENT and class_name in NAMED[3:]
        assert needs_torch(path) == is_version_dependent, class_name
        assert_same_tokenizer(path)


@pytest.mark.parametrize(
    ("kind", "model_types", "class_names"),
    [
        ("byte_level", tokenizer_loading._VERSION_DEPENDENT, ["LlamaTokenizerFast"]),
        ("byte_level", [None], [None, "PreTrainedTokenizerFast", "Qwen2TokenizerFast"]),
        ("llama", ["llama"], ["LlamaTokenizerFast"]),
        ("llama", ["gemma2"], ["GemmaTokenizer"]),
        ("llama", ["mistral"], ["LlamaTokenizer"]),
        ("unigram", UNIGRAM_TYPES, [None, "XLMRobertaTokenizer", "XLMRobertaTokenizerFast", "TokenizersBackend"]),
        (
            "wordpiece",
            ["bert", "distilbert", "modernbert"],
            [None, "BertTokenizer", "BertTokenizerFast", "TokenizersBackend"],
        ),
    ],
)
def test_checkpoints_of_other_kinds_load_as_with_auto_tokenizer(
    kind, model_types, class_names, tokenizer_folders, tmp_path
):
    for index, (model_type, class_name) in enumerate(product(model_types, class_names)):
        config = None if model_type is None else {"model_type": model_type}
        path = checkpoint(tokenizer_folders[kind], tmp_path / str(index), config, tokenizer_class=class_name)
        assert not needs_torch(path), (model_type, class_name)
        assert_same_tokenizer(path)


@pytest.mark.parametrize(
    ("model_type", "class_name"),
    [("lxmert", None), ("lxmert", "BertTokenizer"), ("wholly_new", None), ("siglip2", "TokenizersBackend")],
)
def test_types_missing_in_the_tables_are_loaded_by_auto_tokenizer(model_type, class_name, tokenizer_folders, tmp_path):
    path = checkpoint(tokenizer_folders["wordpiece"], tmp_path, {"model_type": model_type}, tokenizer_class=class_name)
    assert needs_torch(path)
    assert_same_tokenizer(path)


def test_every_model_type_that_overrides_a_generic_class_is_listed():
    overruling = {
        model_type
        for model_type in MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
        if TOKENIZER_MAPPING_NAMES[model_type] not in ("TokenizersBackend", "MistralCommonBackend")
    }
    assert overruling <= tokenizer_loading._FIXED_CLASS.keys()


def test_remote_code_and_tokenizers_in_python_need_torch(tokenizer_folders, tmp_path):
    source = tokenizer_folders["byte_level"]
    remote = checkpoint(source, tmp_path / "remote", {"model_type": "llama"}, auto_map={"AutoTokenizer": ["x.Y", None]})
    assert needs_torch(remote)
    slow = checkpoint(source, tmp_path / "slow", {"model_type": "llama"})
    (slow / "tokenizer.json").unlink()
    assert needs_torch(slow)


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", "{oops"), ("tokenizer.json", "{}"), ("tokenizer_config.json", "{oops"), ("config.json", "[]")],
)
def test_a_corrupt_file_is_one_clear_line(name, content, tokenizer_folders, tmp_path):
    path = checkpoint(tokenizer_folders["byte_level"], tmp_path, {"model_type": "llama"})
    (path / name).write_text(content)
    with pytest.raises(TokenizerLoadError) as raised:
        Renderer(ModelFiles(path, path), RendererConfig())
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("load", [load_tokenizer, keep_tokenizer])
def test_a_missing_tokenizer_is_one_clear_line_and_nothing_is_kept(tmp_path, load):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(TokenizerLoadError, match=str(path)) as raised:
            load(path)
        assert "\n" not in str(raised.value)
        assert path.resolve() not in _cached


def test_trusted_remote_code_is_loaded(tokenizer_folders, tmp_path, monkeypatch):
    """Uses its own module cache, because other test runs share the default cache below HOME."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    source = tokenizer_folders["byte_level"]
    path = checkpoint(source, tmp_path, {"model_type": "llama"}, auto_map={"AutoTokenizer": ["code.Mine", None]})
    (path / "code.py").write_text("from transformers import TokenizersBackend\nclass Mine(TokenizersBackend): pass\n")
    assert type(load_tokenizer(path, trust_remote_code=True)).__name__ == "Mine"


_KEEP_AND_FORK = """
import json, os, sys
from pathlib import Path
from server.terms.config import ModelFiles, RendererConfig
from server.text.renderers.renderer import Renderer
from server.text.renderers.tokenizers.loading import keep_tokenizer
from server.text.renderers.prompts import TextOptions

def count():
    return len(os.listdir("/proc/self/task"))

files = ModelFiles(Path(sys.argv[1]), Path(sys.argv[1]))
before = count()
keep_tokenizer(files.path)
after = count()
pid = os.fork()
if pid == 0:
    with Renderer(files, RendererConfig()) as renderer:
        renderer.warm_up()
        print(json.dumps([before, after, renderer.prompts.render("Hello", TextOptions()).token_ids]), flush=True)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.fixture
def folder(tokenizer_folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tokenizer_folders["byte_level"], tmp_path / "model"))


def test_a_kept_tokenizer_is_used_once_by_any_path_but_not_for_a_models_own_code(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    for path in (folder, tmp_path / "link"):
        keep_tokenizer(folder)
        cached = _cached[folder.resolve()][1]
        assert load_tokenizer(path, trust_remote_code=True) is not cached
        assert load_tokenizer(path) is cached
        assert load_tokenizer(path) is not cached


@pytest.mark.parametrize("change", ["write", "replace", "add", "remove", "template"])
def test_it_is_not_used_after_a_change_of_its_folder(folder, change):
    keep_tokenizer(folder)
    cached = _cached[folder.resolve()][1]
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
    assert load_tokenizer(folder) is not cached


@pytest.mark.thorough
def test_a_fork_uses_it_and_keeping_starts_no_thread(folder):
    before, after, token_ids = json.loads(python_output(_KEEP_AND_FORK, folder))
    assert after == before
    with Renderer(ModelFiles(folder, folder), RendererConfig()) as renderer:
        assert token_ids == renderer.tokenizer.encode("Hello", add_special_tokens=True)
