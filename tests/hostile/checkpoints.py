"""Model folders that try to run code when they are loaded, with pickles and with Python files."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

_MODULE = """
import pathlib
pathlib.Path({marker!r}).mkdir()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class HostileConfig(LlamaConfig): pass
class HostileModel(LlamaForCausalLM): pass
class HostileTokenizer(PreTrainedTokenizerFast): pass
"""


class HostileObject:
    """Unpickling this creates a folder."""

    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> Any:
        return os.mkdir, (self._marker,)


def pickles(marker: Path) -> dict[str, bytes]:
    """Contents of hostile `.bin` files, by kind."""
    hostile = {"model.embed_tokens.weight": HostileObject(marker), "linear.weight": HostileObject(marker)}
    archive, legacy, global_only = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(hostile, archive)
    torch.save(hostile, legacy, _use_new_zipfile_serialization=False)
    torch.save({"model.embed_tokens.weight": torch.zeros(1)}, global_only)
    return {
        "archive": archive.getvalue(),
        "legacy": legacy.getvalue(),
        "bare pickle": pickle.dumps(hostile),
        "archive with another pickle": _with_pickle(global_only.getvalue(), pickle.dumps(HostileObject(marker), 0)),
    }


def write_code(folder: Path, marker: Path) -> None:
    """Makes every configuration in the folder name classes in a Python file next to it."""
    (folder / "hostile.py").write_text(_MODULE.format(marker=str(marker)))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(_MODULE.format(marker=str(marker)))
    _edit(
        folder / "config.json",
        auto_map={"AutoConfig": "hostile.HostileConfig", "AutoModelForCausalLM": "hostile.HostileModel"},
    )
    _edit(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["hostile.HostileTokenizer", "hostile.HostileTokenizer"]},
    )


def _edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def _with_pickle(archive: bytes, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    return out.getvalue()
