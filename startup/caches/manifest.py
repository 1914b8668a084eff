"""What `vllm-cli bake` records about a baked folder: for which program, model and hardware it was written."""

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

from server.machine.file_stamps import StoredStamp, read_stamp
from server.machine.hardware import cpu_features, gpu_kinds
from startup.caches.baked import MANIFEST

FORMAT: Final = 2


@dataclass(frozen=True)
class Interpreter:
    """The Python that bytecode and profiles belong to."""

    version: str
    prefix: str

    @classmethod
    def running(cls) -> Self:
        """The one of this process."""
        return cls(f"{platform.python_implementation()} {platform.python_version()}", sys.prefix)


@dataclass(frozen=True)
class Hardware:
    """What compiled code depends on."""

    cpu: str
    gpus: tuple[str, ...]

    @classmethod
    def present(cls) -> Self:
        """The hardware of this machine."""
        return cls(cpu_features(), gpu_kinds())


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of the file."""

    bake_id: str
    created_at: str
    engine: str
    words: tuple[str, ...]
    """The command line after `serve`, without addresses and keys."""
    model: str
    """The model's folder; empty if it was not on disk."""
    model_files: Mapping[str, StoredStamp]
    interpreter: Interpreter
    hardware: Hardware
    packages: Mapping[str, str]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Parts that this folder lacks, and why."""
    format: int = FORMAT

    def save(self, folder: Path) -> None:
        """Writes it into the folder."""
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises OSError or ValueError for a file that cannot be read, or of another format."""
        import msgspec  # noqa: PLC0415 - few starts read a manifest

        try:
            content = msgspec.json.decode((folder / MANIFEST).read_bytes())
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']}, this version reads {FORMAT}")
            return msgspec.convert(content, cls)
        except (msgspec.MsgspecError, KeyError, TypeError) as err:
            raise ValueError(f"{MANIFEST} is not complete: {err}") from err


def stamps_of(folder: Path) -> dict[str, StoredStamp]:
    """The stamps of the files in a model's folder, by name."""
    return {path.name: read_stamp(path).stored for path in sorted(folder.iterdir()) if path.is_file()}
