"""A commit of a repository that the stand-in for the hub serves."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

_LFS_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_LFS_FROM_BYTES: Final = 10_000_000


@dataclass(frozen=True)
class HubFile:
    """One file; large ones and weights are in LFS, as on the hub."""

    name: str
    """The path inside of the repository."""
    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def is_lfs(self) -> bool:
        return self.name.endswith(_LFS_SUFFIXES) or self.size >= _LFS_FROM_BYTES

    @cached_property
    def sha256(self) -> str:
        """The ETag of a file in LFS."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def blob_id(self) -> str:
        """Git's object id, which is the ETag of a file outside of LFS; of one in LFS git has a short text."""
        text = self._pointer if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id

    @property
    def lfs(self) -> dict[str, Any]:
        """The fields that describe a file in LFS."""
        return {"size": self.size, "pointerSize": len(self._pointer)}

    @property
    def _pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        return text.encode()


class HubCommit:
    """The files of one commit."""

    def __init__(self, files: Mapping[str, bytes], commit: str | None = None) -> None:
        self.files = {name: HubFile(name, content) for name, content in sorted(files.items())}
        self._commit = commit

    @classmethod
    def of_folder(cls, folder: Path) -> "HubCommit":
        """All files of a model folder; links, as in a snapshot of the hub's cache, are followed."""
        found = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)
        return cls({str(path.relative_to(folder)): path.read_bytes() for path in found})

    @cached_property
    def id(self) -> str:
        """The commit's hash: a function of names and contents unless it was given."""
        text = json.dumps([(file.name, file.etag) for file in self.files.values()])
        return self._commit or hashlib.sha1(text.encode()).hexdigest()

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())
