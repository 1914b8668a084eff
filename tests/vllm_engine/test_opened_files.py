"""The files of a plan are those that real vLLM opens, for several layouts of a model. strace lists them."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from startup.vllm_arguments.vllm_line import VllmLine
from tests.support.marks import needs_tool
from tests.vllm_engine.conftest import SMALL
from tests.vllm_engine.vllm_server import VllmServer

pytestmark = [
    pytest.mark.versions,
    needs_tool("strace"),
]

_COMMIT = "a" * 40
_OPENED = re.compile(r'openat\(\S+ "([^"]+)", (\S+?)(?:, \S+)?\) = \d+')
_STRAY = ("README.md", "LICENSE.txt", "training_args.bin", "optimizer.pt", "model.onnx", "trainer_state.json")
_SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "*.jinja")


class Layout(NamedTuple):
    """A model on disk, and the arguments that serve it."""

    arguments: list[str]
    environment: dict[str, str] = {}


@pytest.fixture(scope="module")
def formats(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as one file, as shards and for torch. Also an adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("formats")
    model = AutoModelForCausalLM.from_pretrained(small_model)
    model.save_pretrained(folder / "shards", max_shard_size="15MB")
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    settings = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(model, settings).save_pretrained(folder / "adapter")
    _put(folder, small_model, *_SMALL_FILES, "model.safetensors")
    assert len(list((folder / "shards").glob("model-*.safetensors"))) > 1
    return folder


def _put(target: Path, source: Path, *names: str) -> Path:
    """Copies files, and adds files that no start reads."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        for path in source.glob(name):
            shutil.copyfile(path, target / path.name)
    for name in _STRAY:
        (target / name).write_bytes(b"not read")
    return target


def _single(formats: Path, root: Path) -> Layout:
    """One file of safetensors, and the same weights for torch."""
    return Layout([str(_put(root, formats, *_SMALL_FILES, "model.safetensors", "pytorch_model.bin"))])


def _snapshot(formats: Path, root: Path) -> Layout:
    """Shards of a revision in the hub's cache, and a file that the index does not name.

    The tokenizer and an adapter are in folders of their own.
    """
    repository = root / "hub" / "models--org--model"
    snapshot = _put(repository / "snapshots" / _COMMIT, formats / "shards", "*.json", "*.safetensors")
    shutil.copyfile(formats / "model.safetensors", snapshot / "model.safetensors")
    (repository / "refs").mkdir()
    (repository / "refs" / "v2").write_text(_COMMIT)
    tokenizer = _put(root / "arguments", formats, "config.json", "tokenizer*.json", "*.jinja")
    adapter = _put(root / "adapter", formats / "adapter", "*")
    arguments = ["org/model", "--revision", "v2", "--tokenizer", str(tokenizer)]
    lora = ["--enable-lora", "--lora-modules", f"own={adapter}"]
    return Layout([*arguments, *lora], {"HF_HUB_CACHE": str(root / "hub")})


@pytest.mark.parametrize("write", [_single, _snapshot])
def test_vllm_opens_the_planned_files(write, formats, tmp_path, workplace, monkeypatch):
    layout = write(formats, tmp_path / "model")
    for name, value in layout.environment.items():
        monkeypatch.setenv(name, value)
    plan = VllmLine.of(layout.arguments).file_plan
    planned = {path.resolve() for path in plan.read_order}
    assert _opened_by_vllm(layout, tmp_path, workplace) == planned
    assert all(download.is_update for download in plan.downloads)


def _opened_by_vllm(layout: Layout, root: Path, workplace: Path) -> set[Path]:
    """The files below the test's folder that a start opens until its first token."""
    trace = root / "trace"
    strace = ("strace", "-D", "-f", "-qq", "--seccomp-bpf", "-e", "trace=openat", "-s", "4096", "-o", str(trace))
    model, *arguments = layout.arguments
    server = VllmServer("plain", Path(model), *SMALL, *arguments, folder=workplace, prefix=strace)
    with server:
        server.wait_ready()
        server.generate()
    return _files(trace.read_text(errors="replace").splitlines(), root / "model")


def _files(lines: Sequence[str], root: Path) -> set[Path]:
    found = (match for line in lines if (match := _OPENED.search(line)) and "O_DIRECTORY" not in match[2])
    paths = {Path(match[1]).resolve() for match in found}
    below = {path for path in paths if path.is_relative_to(root.resolve()) and path.is_file()}
    return {path for path in below if path.parent.name != "refs"}  # the commits of the hub's cache
