"""Models in the GGUF format. llama.cpp's server serves these models instead of the embedded engine."""

import json
import re
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from envs.home import expand_home

LLAMA_SERVER: Final = "llama-server"
KEY_VARIABLE: Final = "LLAMA_API_KEY"
_QUANTIZED: Final = re.compile(r"[\w.-]+/[\w.-]+:\w+")
"""A name by which llama.cpp loads a model from the hub: repository and quantization."""
_PART: Final = re.compile(r"(.+-)\d+(-of-\d+\.gguf)")


class GgufModel(NamedTuple):
    """A model that llama-server loads."""

    name: str
    words: tuple[str, ...]
    """The words of llama-server's command line that name the model."""

    @property
    def is_on_hub(self) -> bool:
        """Whether llama-server downloads the model."""
        return self.words[0] == "-hf"

    @property
    def advice(self) -> str:
        """A part of a message that explains how a models file of the router serves this model."""
        command = shlex.join([LLAMA_SERVER, *self.words]).replace(LLAMA_SERVER, f"{LLAMA_SERVER} --port ${{PORT}}", 1)
        models = json.dumps({"models": {self.name: {"cmd": command, "checkEndpoint": "/health"}}})
        return (
            f"which llama.cpp serves behind the router: write `{models}` into models.yaml, and start `vllm-cli serve "
            "--models models.yaml`"
        )


def find_gguf(name: str) -> GgufModel | None:
    """Finds a GGUF model by its file, by a folder without config.json, or by `repository:quantization`."""
    path = Path(expand_home(name))
    if path.suffix == ".gguf" and path.is_file():
        return _of_file(path)
    if path.is_dir():
        return None if (path / "config.json").exists() else first_gguf(path)
    if _QUANTIZED.fullmatch(name) and not path.exists():
        return GgufModel(name.rpartition("/")[2], ("-hf", name))
    return None


def first_gguf(folder: Path) -> GgufModel | None:
    """Returns the model of the folder's first GGUF file. llama-server finds the model's other files itself.

    Files of image encoders (`mmproj`) are skipped.
    """
    files = sorted(path for path in folder.glob("*.gguf") if not path.name.startswith("mmproj"))
    return _of_file(files[0]) if files else None


def parts_of(file: Path) -> Iterable[Path]:
    """Returns all files of the split model to which `file` belongs, or only `file` if no model is split."""
    if (found := _PART.fullmatch(file.name)) is None:
        return (file,)
    return (path for path in file.parent.glob(f"*{found[2]}") if path.name.startswith(found[1]))


def has_llama_server(search_path: str | None = None) -> bool:
    """Whether PATH, or the given search path, has llama-server."""
    return shutil.which(LLAMA_SERVER, path=search_path) is not None


def _of_file(path: Path) -> GgufModel:
    return GgufModel(path.stem, ("-m", str(path.absolute())))
