"""What `vllm-cli bake` records about a baked folder: for which program, model and hardware it was written."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

from server.machine.hardware import cpu_features, gpu_kinds
from startup.caches.baked import MANIFEST

FORMAT: Final = 2


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
