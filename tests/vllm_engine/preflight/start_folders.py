"""Builds the model folders and other files that the starts of `starts.txt` name.

`{model}` in a word is the real model. All other names are built on demand. Weights are linked, not copied.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.support.certificates import make_certificate
from tests.support.peer_vllm import ROOT

MODEL: Final = ROOT / ".peers" / "model"
_WEIGHTS: Final = "model.safetensors"


class StartFolders:
    """Builds each file or folder once, all of them in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fill(self, text: str) -> str:
        """Replaces each `{name}` in the text by the path of the file or folder with this name."""
        for name in sorted((*_BUILDERS, "model", "folder"), key=len, reverse=True):
            if "{" + name + "}" in text:
                text = text.replace("{" + name + "}", str(self.path(name)))
        return text

    def path(self, name: str) -> Path:
        """The file or folder with this name."""
        if name == "folder":
            return self._folder
        if name == "model":
            return MODEL
        path = self._folder / name
        if not path.exists():
            _BUILDERS[name](path)
        return path


def _copy(path: Path, *, without: tuple[str, ...] = (), **changes: Any) -> None:
    """The real model with linked weights, and with changes in config.json. None removes a value."""
    path.mkdir(parents=True)
    for source in MODEL.iterdir():
        if source.name in without:
            continue
        if source.name == _WEIGHTS:
            (path / _WEIGHTS).symlink_to(source.resolve())
        else:
            shutil.copy(source, path / source.name)
    if changes:
        config = json.loads((path / "config.json").read_text())
        config |= changes
        config = {key: value for key, value in config.items() if value is not None}
        (path / "config.json").write_text(json.dumps(config))


def _copy_with(path: Path, name: str, content: str) -> None:
    _copy(path, without=(name,))
    (path / name).write_text(content)


def _dummy(path: Path) -> None:
    _copy(path, without=(_WEIGHTS,))


def _lfs(path: Path) -> None:
    _copy(path, without=(_WEIGHTS,))
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 269060552\n"
    (path / _WEIGHTS).write_text(pointer)


def _truncated(path: Path) -> None:
    _copy(path, without=(_WEIGHTS,))
    with (MODEL / _WEIGHTS).open("rb") as source:
        (path / _WEIGHTS).write_bytes(source.read((MODEL / _WEIGHTS).stat().st_size // 2))


def _missing_shard(path: Path) -> None:
    _copy(path, without=(_WEIGHTS,))
    (path / "model-00001-of-00002.safetensors").symlink_to((MODEL / _WEIGHTS).resolve())
    shards = {"model.norm.weight": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def _junk(path: Path) -> None:
    """A model with files that a training run, a Mac and an interrupted download leave behind."""
    _copy(path)
    (path / ".DS_Store").write_bytes(b"\0\0\0\1")
    (path / "optimizer.pt").write_bytes(b"no checkpoint")
    (path / "training_args.bin").write_bytes(b"no checkpoint")
    (path / "README.md").write_text("# A model")
    (path / "model.safetensors.incomplete").write_bytes(b"half")
    (path / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")


def _odd_names(path: Path) -> None:
    _copy(path, without=(_WEIGHTS,))
    (path / "weights.safetensors").symlink_to((MODEL / _WEIGHTS).resolve())


def _index_of_one(path: Path) -> None:
    """Weights with an index, and another file of weights that is not in the index."""
    _copy(path, without=(_WEIGHTS,))
    shard = "model-00001-of-00001.safetensors"
    (path / shard).symlink_to((MODEL / _WEIGHTS).resolve())
    with (MODEL / _WEIGHTS).open("rb") as file:
        names = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    names.pop("__metadata__", None)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    (path / _WEIGHTS).symlink_to((MODEL / _WEIGHTS).resolve())


def _remote_code(path: Path) -> None:
    auto_map = {"AutoConfig": "own_config.OwnConfig"}
    _copy(path, model_type="own_llama", auto_map=auto_map)
    (path / "own_config.py").write_text(
        "from transformers import LlamaConfig\n\nclass OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n"
    )


def _adapter(path: Path, rank: int = 8) -> None:
    path.mkdir()
    config = {"r": rank, "lora_alpha": 16, "target_modules": ["q_proj"], "peft_type": "LORA", "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps(config))


def _cached(path: Path) -> None:
    """A cache of the hub with the model `someone/tiny`."""
    snapshot = path / "hub" / "models--someone--tiny" / "snapshots" / "a1b2"
    snapshot.parent.mkdir(parents=True)
    _copy(snapshot)
    refs = path / "hub" / "models--someone--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a1b2")


def _text(content: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(content)


def _certificate(path: Path) -> None:
    path.mkdir()
    make_certificate(path, "localhost")


def _package(path: Path) -> None:
    path.mkdir()
    (path / "own_middleware.py").write_text("class Middleware:\n    def __init__(self, app):\n        self.app = app\n")
    (path / "own_processor.py").write_text(
        "from vllm.v1.sample.logits_processor import LogitsProcessor\n\nclass Own(LogitsProcessor):\n    pass\n"
    )


def _link(path: Path) -> None:
    path.symlink_to(MODEL.resolve(), target_is_directory=True)


_TOOL_PLUGIN: Final = """\
from vllm.tool_parsers import ToolParser, ToolParserManager

@ToolParserManager.register_module("mine")
class Mine(ToolParser):
    pass
"""
_REASONING_PLUGIN: Final = """\
from vllm.reasoning import ReasoningParser, ReasoningParserManager

@ReasoningParserManager.register_module("mine")
class Mine(ReasoningParser):
    pass
"""
_YAML: Final = """\
max-model-len: 512
max_num_seqs: 4
enable-prefix-caching: false
enforce-eager: true
served-model-name:
  - first
  - second
compilation-config:
  mode: 0
seed: 1
"""

_BUILDERS: Final[dict[str, Callable[[Path], Any]]] = {
    "dummy": _dummy,
    "lfs": _lfs,
    "truncated": _truncated,
    "missing_shard": _missing_shard,
    "junk": _junk,
    "odd_names": _odd_names,
    "index_of_one": _index_of_one,
    "remote_code": _remote_code,
    "link": _link,
    "with space é": _copy,
    "no_tokenizer": lambda path: _copy(path, without=("tokenizer.json", "tokenizer_config.json")),
    "no_config": lambda path: _copy(path, without=("config.json",)),
    "broken_config": lambda path: _copy_with(path, "config.json", '{"model_type": "llama",'),
    "broken_tokenizer": lambda path: _copy_with(path, "tokenizer.json", '{"version":'),
    "unknown_architecture": lambda path: _copy(path, architectures=["LlamoForCausalLM"]),
    "unknown_type": lambda path: _copy(path, model_type="llamo", architectures=["LlamoForCausalLM"]),
    "gptq": lambda path: _copy(path, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128}),
    "unknown_method": lambda path: _copy(path, quantization_config={"quant_method": "nofp2"}),
    "classifier": lambda path: _copy(path, architectures=["LlamaForSequenceClassification"]),
    "no_architectures": lambda path: _copy(path, architectures=None),
    "compressed": lambda path: _copy(
        path, quantization_config={"quant_method": "compressed_tensors", "config_groups": {}}
    ),
    "scaled": lambda path: _copy(path, rope_parameters={"rope_theta": 1e5, "rope_type": "dynamic", "factor": 4.0}),
    "more_layers": lambda path: _copy(path, num_hidden_layers=40),
    "empty": lambda path: path.mkdir(),
    "adapter": _adapter,
    "adapter_64": lambda path: _adapter(path, 64),
    "cached": _cached,
    "certificates": _certificate,
    "package": _package,
    "template.jinja": _text("{{ messages[0].content }}"),
    "tools.py": _text(_TOOL_PLUGIN),
    "reasoning.py": _text(_REASONING_PLUGIN),
    "settings.yaml": _text(_YAML),
    "model.yaml": lambda path: path.write_text(f"model: {MODEL}\nmax-model-len: 512\n"),
    "nested.yml": _text('structured-outputs-config: {backend: "xgrammar"}\nmax-model-len: 1k\n'),
    "list.yaml": _text("- a\n- b\n"),
    "broken.yaml": _text("a: [1,\n"),
    "settings.json": _text("{}"),
}
