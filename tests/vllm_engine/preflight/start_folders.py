"""Builds the model folders and other files that the starts of `starts.yaml` name.

`{model}` in an argument is the real model. All other names are built on demand. Weights are
linked, not copied.
"""

import json
import shutil
from collections.abc import Callable, Collection, Mapping
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


def _copy(
    path: Path,
    *,
    without: Collection[str] = (),
    links: Collection[str] = (),
    files: Mapping[str, str | bytes] = {},
    **changes: Any,
) -> None:
    """The real model with linked weights.

    Args:
        path: the folder of the copy.
        without: files that the copy lacks.
        links: further names of the weights.
        files: content of other files.
        changes: values in config.json. None removes a value.
    """
    path.mkdir(parents=True)
    for source in MODEL.iterdir():
        if source.name in without or source.name in files:
            continue
        if source.name == _WEIGHTS:
            (path / _WEIGHTS).symlink_to(source.resolve())
        else:
            shutil.copy(source, path / source.name)
    for name in links:
        (path / name).symlink_to((MODEL / _WEIGHTS).resolve())
    for name, content in files.items():
        (path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    if changes:
        config = json.loads((path / "config.json").read_text()) | changes
        (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def _half_of_the_weights() -> bytes:
    with (MODEL / _WEIGHTS).open("rb") as source:
        return source.read((MODEL / _WEIGHTS).stat().st_size // 2)


def _index(shard_of: dict[str, str]) -> dict[str, str]:
    return {"model.safetensors.index.json": json.dumps({"weight_map": shard_of})}


def _index_of_one(path: Path) -> None:
    """Weights with an index, and another file of weights that is not in the index."""
    shard = "model-00001-of-00001.safetensors"
    with (MODEL / _WEIGHTS).open("rb") as file:
        names = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    names.pop("__metadata__", None)
    _copy(path, links=(shard,), files=_index(dict.fromkeys(names, shard)))


def _adapter(path: Path, rank: int = 8) -> None:
    path.mkdir()
    config = {"r": rank, "lora_alpha": 16, "target_modules": ["q_proj"], "peft_type": "LORA", "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps(config))


def _cached(path: Path) -> None:
    """A cache of the hub with the model `someone/tiny`."""
    repository = path / "hub" / "models--someone--tiny"
    _copy(repository / "snapshots" / "a1b2")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a1b2")


def _text(content: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(content)


def _package(path: Path) -> None:
    path.mkdir()
    (path / "own_middleware.py").write_text("class Middleware:\n    def __init__(self, app):\n        self.app = app\n")
    (path / "own_processor.py").write_text(
        "from vllm.v1.sample.logits_processor import LogitsProcessor\n\nclass Own(LogitsProcessor):\n    pass\n"
    )


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

_JUNK: Final[dict[str, str | bytes]] = {
    ".DS_Store": b"\0\0\0\1",
    "optimizer.pt": "no checkpoint",
    "training_args.bin": "no checkpoint",
    "README.md": "# A model",
    "model.safetensors.incomplete": "half",
    "pytorch_model.bin": "version https://git-lfs.github.com/spec/v1\n",
}
"""Files that a training run, a Mac and an interrupted download leave behind."""
_SHARDS: Final = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_POINTER: Final = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 269060552\n"
_OWN_CONFIG: Final = """\
from transformers import LlamaConfig

class OwnConfig(LlamaConfig):
    model_type = 'own_llama'
"""

_BUILDERS: Final[dict[str, Callable[[Path], Any]]] = {
    "dummy": lambda path: _copy(path, without=(_WEIGHTS,)),
    "lfs": lambda path: _copy(path, files={_WEIGHTS: _POINTER}),
    "truncated": lambda path: _copy(path, files={_WEIGHTS: _half_of_the_weights()}),
    "missing_shard": lambda path: _copy(
        path,
        without=(_WEIGHTS,),
        links=_SHARDS[:1],
        files=_index(dict(zip(("model.norm.weight", "x"), _SHARDS, strict=True))),
    ),
    "junk": lambda path: _copy(path, files=_JUNK),
    "odd_names": lambda path: _copy(path, without=(_WEIGHTS,), links=("weights.safetensors",)),
    "index_of_one": _index_of_one,
    "remote_code": lambda path: _copy(
        path,
        files={"own_config.py": _OWN_CONFIG},
        model_type="own_llama",
        auto_map={"AutoConfig": "own_config.OwnConfig"},
    ),
    "link": lambda path: path.symlink_to(MODEL.resolve(), target_is_directory=True),
    "with space é": _copy,
    "no_tokenizer": lambda path: _copy(path, without=("tokenizer.json", "tokenizer_config.json")),
    "no_config": lambda path: _copy(path, without=("config.json",)),
    "broken_config": lambda path: _copy(path, files={"config.json": '{"model_type": "llama",'}),
    "broken_tokenizer": lambda path: _copy(path, files={"tokenizer.json": '{"version":'}),
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
    "certificates": lambda path: (path.mkdir(), make_certificate(path, "localhost")),
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
