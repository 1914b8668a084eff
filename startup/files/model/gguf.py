"""Models in the GGUF format, which llama.cpp's server serves. Reads names and the beginnings of files."""

import re
import shlex
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

from base.wording import list_some
from envs.foreign import expand_home
from startup.files.model.file_faults import file_problem, first_bytes, first_problem
from startup.files.model.model_name import is_gguf_id

LLAMA_SERVER: Final = "llama-server"
KEY_VARIABLE: Final = "LLAMA_API_KEY"
VLLM_PLUGIN: Final = "vllm-gguf-plugin"
"""The package without which no supported release of vLLM reads GGUF."""
NUMBERED: Final = re.compile(r"(.+-)(\d+)((?i:-of-)(\d+)\.\w+)")
"""Matches the name of one of several files of a divided model, in any format."""
_MAX_PARTS: Final = 10_000
_MAGIC: Final = b"GGUF"
_HEADER_BYTES: Final = 64 << 10
"""How much of a file is read for its header. The facts come before the vocabulary, which is long."""
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The numbers of a header's scalar types, with their formats for `struct`."""
_STRING: Final = 8
_LIST: Final = 9
_PROJECTOR: Final = "clip"
_NOT_MODELS: Final = ("adapter", "imatrix", "mmproj", "projector", _PROJECTOR, "eagle3", "dflash", "dspark")
"""Values of `general.type` or `general.architecture` in files that no server serves on their own."""
_NAMES_OF_OTHERS: Final = re.compile(r"mtp-|(?i:^mtp-|mmproj|imatrix|eagle3-|dflash-|dspark-)")
"""Parts of the names of files that are no models. Headers decide first, but not about `mtp-`."""
_PREFERRED: Final = ("q4_k_m", "q8_0")
"""The quantizations that llama.cpp itself prefers if no one is named."""


class GgufModel(NamedTuple):
    """A model that llama-server loads."""

    name: str
    arguments: tuple[str, ...]
    """The arguments of llama-server's command line that name the model."""
    projector: Path | None = None
    """The file that turns images or sound into input for the model."""
    missing: tuple[str, ...] = ()
    """Names of files of a divided model that do not exist."""
    choice: str = ""
    """Which file was chosen, and which others there are. Empty if there was no choice."""

    @property
    def is_on_hub(self) -> bool:
        """Whether llama-server downloads the model."""
        return self.arguments[0] == "-hf"


def find_gguf(name: str) -> GgufModel | None:
    """Finds a GGUF model by its file, by a folder without other weights, or by `repository:quantization`."""
    path = Path(expand_home(name))
    if path.is_file():
        return _of_file(path) if first_bytes(path, len(_MAGIC)) == _MAGIC else None
    if path.is_dir():
        return None if _has_other_weights(path) else model_in(path)
    is_on_hub = is_gguf_id(name) and not path.is_symlink()
    return GgufModel(name.partition("/")[2], ("-hf", name)) if is_on_hub else None


def gguf_problem(name: str) -> str | None:
    """Why a GGUF file is no model, or all such files of a folder without other weights. Else None."""
    path = Path(expand_home(name))
    if path.is_dir() and (_has_other_weights(path) or model_in(path) is not None):
        return None
    if path.is_dir():
        return first_problem(_gguf_files(path, is_wanted=file_problem))
    return first_problem([path] if _is_named(path) else [])


def advice_for(name: str) -> str:
    """A part of a message that says how the GGUF model of this name is served."""
    command = f"vllm-cli serve {shlex.quote(name)}"
    return f"which llama.cpp serves: put its `{LLAMA_SERVER}` on PATH, and start `{command}`"


def model_in(folder: Path) -> GgufModel | None:
    """Returns the model of a folder, or of its subfolders. None if no GGUF file is a model.

    If there are several, llama.cpp's preferences decide, then the files' names.
    """
    models = [file for file in _gguf_files(folder) if not _is_other(file) and _is_first(file)]
    if not models:
        return None
    chosen = min(models, key=_preference)
    others = [str(file.relative_to(folder)) for file in models if file != chosen]
    model = _of_file(chosen)
    if not others:
        return model
    text = f"{chosen.relative_to(folder)} of {folder} is served, not {list_some(others)}: name the file for another"
    return model._replace(choice="; ".join(filter(None, (text, model.choice))))


def parts_of(file: Path) -> Iterator[Path]:
    """Returns all files of the split model to which `file` belongs, or only `file` if no model is split."""
    return map(file.with_name, shard_names(file.name))


def shard_names(name: str) -> list[str]:
    """Returns the names of all files of a numbered file's set. For any other file, returns only its name."""
    match = NUMBERED.fullmatch(name)
    if match is None or int(match[4]) > _MAX_PARTS:
        return [name]
    stem, number, rest, total = match.groups()
    return [f"{stem}{i:0{len(number)}}{rest}" for i in range(1, int(total) + 1)]


def has_llama_server(search_path: str | None = None) -> bool:
    """Whether PATH, or the given search path, has llama-server."""
    return shutil.which(LLAMA_SERVER, path=search_path) is not None


def is_read_by_vllm() -> bool:
    """Whether the installed vLLM has the plugin that reads GGUF."""
    return find_spec(VLLM_PLUGIN.replace("-", "_")) is not None


def _of_file(path: Path) -> GgufModel:
    """The model of a file, or of all files that belong to it. llama-server gets the first of them."""
    parts = tuple(parts_of(path))
    path = parts[0].absolute()
    missing = tuple(part.name for part in parts if not _is_gguf(part))
    projectors = [file for file in _gguf_files(path.parent, "*") if file != path and _is_projector(file)]
    used = next((file for file in projectors if _fits(file, path)), None)
    others = [file.name for file in projectors if file != used]
    choice = first_problem(file for file in path.parent.glob("[!.]*") if _is_named(file)) or ""
    if others:
        choice = f"{path.name} has {used.name if used else 'none'} as its projector (--mmproj), not {list_some(others)}"
    return GgufModel(path.stem, ("-m", str(path)), used, missing, choice)


def _has_other_weights(folder: Path) -> bool:
    """Whether the folder is a model in another format. A configuration alone is no sign of one."""
    if not any((folder / name).exists() for name in ("config.json", "params.json")):
        return False
    return any(True for ending in (".safetensors", ".bin", ".pt", ".index.json") for _ in folder.glob(f"[!.]*{ending}"))


def _is_gguf(path: Path) -> bool:
    return path.is_file() and first_bytes(path, len(_MAGIC)) == _MAGIC


def _is_named(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _gguf_files(folder: Path, *places: str, is_wanted: Callable[[Path], object] = _is_gguf) -> list[Path]:
    """The wanted files with this ending in the first of these places that has any, in order."""
    found = (filter(_is_named, folder.glob(place)) for place in places or ("*", "*/*"))
    return next(filter(None, (sorted(filter(is_wanted, files)) for files in found)), [])


def _is_first(file: Path) -> bool:
    """Whether the file is a whole model, or the first existing part of one."""
    return next(filter(_is_gguf, parts_of(file))) == file


def _preference(file: Path) -> tuple[bool, int, str]:
    name = file.name.lower()
    rank = next((place for place, each in enumerate(_PREFERRED) if each in name), len(_PREFERRED))
    return _NAMES_OF_OTHERS.search(file.name) is not None, rank, file.name


def _is_other(file: Path) -> bool:
    """Whether the file is no model of its own, but a projector, a draft model, an adapter or statistics."""
    header = read_header(file)
    kinds = [str(header.get(f"general.{key}")) for key in ("type", "architecture")]
    if any(kind in _NOT_MODELS for kind in kinds):
        return True
    has_name = _NAMES_OF_OTHERS.search(file.name)
    return has_name is not None and ("general.architecture" not in header or has_name[0].lower() == "mtp-")


def _is_projector(file: Path) -> bool:
    header = read_header(file)
    return header["general.architecture"] == _PROJECTOR if "general.architecture" in header else "mmproj" in file.name


def _fits(projector: Path, model: Path) -> bool:
    """Whether the projector's output has the size of the model's input. True if a header lacks the size."""
    header, header_of_model = read_header(projector), read_header(model)
    size = header_of_model.get(f"{header_of_model.get('general.architecture')}.embedding_length")
    sizes = {value for key, value in header.items() if key.endswith(".projection_dim")}
    return size is None or not sizes or size in sizes


def read_header(file: Path) -> Mapping[str, str | int | float]:
    """Returns the facts at the beginning of a GGUF file. Empty if the file has another format.

    Reads at most 64 KiB, and leaves out lists.
    """
    return _read_header(file, file.stat().st_mtime_ns) if file.exists() else {}


@lru_cache(maxsize=256)
def _read_header(file: Path, _time_ns: int) -> Mapping[str, str | int | float]:
    reader = GgufReader(first_bytes(file, _HEADER_BYTES))
    with suppress(struct.error, KeyError, OverflowError):  # ends at the end of the content
        reader.read_metadata()
    return {key: value for key, value in reader.facts.items() if not isinstance(value, list)}


class GgufReader:
    """Reads a GGUF file from its beginning. Raises struct.error or KeyError for faulty or cut-off content."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.place = 0
        """The place after what was read last."""
        self.facts: dict[str, Any] = {}

    def read_metadata(self) -> None:
        """Reads the facts at the file's beginning. After a fault, `facts` has all that precedes it."""
        if self.content.startswith(_MAGIC):
            self.place = 16
            for _ in range(self.take("Q")[0]):
                key, kind = self.text(), self.take("I")[0]
                if kind == _LIST:
                    self.facts[key] = self._read(*self.take("IQ"))
                else:
                    self.facts[key] = self._read(kind, 1)[0]

    def take(self, layout: str) -> tuple[Any, ...]:
        """The next values, in this layout of `struct`."""
        values = struct.unpack_from(f"<{layout}", self.content, self.place)
        self.place += struct.calcsize(f"<{layout}")
        return values

    def text(self) -> str:
        end = self.take("Q")[0] + self.place
        if end > len(self.content):
            raise struct.error
        text, self.place = self.content[self.place : end].decode("utf-8", "replace"), end
        return text

    def _read(self, kind: int, number: int) -> list[Any]:
        """The next values of one type. Numbers are read in one call: there may be one for each token."""
        if kind == _STRING:
            return [self.text() for _ in range(number)]
        return list(self.take(f"{number}{_SCALARS[kind]}"))
