"""The record of one compiled model: its files, and the values, versions and hardware that it depends on.

vLLM names a compiled model by a hash, the key. The hashed values are called factors. A machine keeps the
record of each compiled model in its cache folder. Each archive in a shared location also has a record.
"""

import hashlib
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from base.json_depth import check_depth
from base.machine.hardware import gpu_kinds, instruction_sets
from startup.storage.caches import CONVERTING

FORMAT: Final = 2
"""The number of the format. It is part of the names of families. Only records of this format are read."""
ARCHIVE_SUFFIX: Final = ".zip"
_KEY: Final = re.compile(r"[0-9a-f]{10,64}")
_RANK: Final = re.compile(r"rank_\d{1,6}_\d{1,6}")
_NUM_DIGITS: Final = 16
_LONGEST_COMPILATION_S: Final = 86_400.0


class FileFacts(NamedTuple):
    """The size and the hash of a file, which identify its content."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """Reads the whole file. Raises OSError."""
        with path.open("rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class Hardware:
    """The properties of a machine on which compiled code depends."""

    machine: str
    instruction_sets: tuple[str, ...]
    gpus: tuple[str, ...]

    @property
    def name(self) -> str:
        """A short name of the hardware, made of hexadecimal digits."""
        return _digest(asdict(self))[:_NUM_DIGITS]

    @classmethod
    def present(cls) -> Self:
        return cls(platform.machine(), instruction_sets(), gpu_kinds())


@dataclass(frozen=True, kw_only=True)
class ArchiveRecord:
    """The record of an archive: the files in it, and when they were made."""

    created_at: str
    """When the files were compiled or packed, in ISO 8601 and UTC."""
    files: Mapping[str, FileFacts] = field(default_factory=dict)
    """Name -> file. A name is the cache (`vllm`, `triton`, ...) and the path in this cache, with slashes."""
    format: int = FORMAT

    @property
    def num_bytes(self) -> int:
        return sum(facts.size for facts in self.files.values())

    def with_files(self, files: Mapping[str, FileFacts]) -> Self:
        """A record of the same archive, but with these files."""
        return replace(self, files=files)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Reads a record from a JSON object. Raises ValueError if it is not a record of this format."""
        import msgspec  # noqa: PLC0415 - few starts read a record

        try:
            check_depth(content)
            with CONVERTING:
                record: Self = msgspec.json.decode(content, type=cls)
        except ValueError as err:
            raise ValueError(f"the record of a compiled model is not valid: {err}") from err
        if record.format != FORMAT:
            raise ValueError(f"the record's format is {record.format}, this version reads {FORMAT}")
        return record


@dataclass(frozen=True, kw_only=True)
class CompiledModel(ArchiveRecord):
    """The record of one compiled model."""

    key: str
    """vLLM's name of the compiled model: the hash of its factors, in hexadecimal digits."""
    model: str
    """The name of the model on the command line."""
    start_id: str
    """A hash of the flags of the start that compiled the model."""
    digest: str
    """The digest of all factors at the time when vLLM looked for the compiled model."""
    early_digest: str
    """The digest of all factors before the model was loaded. vLLM may change some factors later."""
    factors: Mapping[str, Mapping[str, Any]]
    """Group -> name -> the value that vLLM hashed before it loaded the model, as a JSON value."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Module -> SHA-256 of its source file, for all traced modules."""
    versions: Mapping[str, str]
    """The versions of Python and of the packages that compile."""
    hardware: Hardware
    ranks: tuple[str, ...]
    """The ranks (workers) of this node whose code is in the compiled model, named like vLLM's folders."""
    compile_s: float
    """Seconds that the compilation took."""

    @property
    def family(self) -> str:
        """The name of the family, which is also the name of a folder in a location."""
        return self.family_of(self.model, self.versions, self.hardware)

    @staticmethod
    def family_of(model: str, versions: Mapping[str, str], hardware: Hardware) -> str:
        """The name that all compiled models of this model, these versions and this hardware share."""
        facts = [FORMAT, model, dict(sorted(versions.items())), asdict(hardware)]
        return f"{versions.get('vllm', 'unknown')}-{_digest(facts)[:12]}"

    @property
    def file_name(self) -> str:
        """The name of the record's file on a machine. Each key has one file for each node."""
        return f"{self.key[:32]}-{_digest(self.ranks)[:8]}.json"

    @property
    def name(self) -> "ArchiveName":
        digests = (self.early_digest[:_NUM_DIGITS], self.digest[:_NUM_DIGITS])
        sources = _digest(sorted(self.sources.items()))[:8]  # vLLM's key does not include the sources
        ranks = _digest(self.ranks)[:8]
        return ArchiveName(self.start_id, *digests, self.key[:32], ranks, sources)

    @property
    def archive_name(self) -> str:
        """The path of the archive in a location."""
        return f"{self.family}/{'-'.join(self.name)}{ARCHIVE_SUFFIX}"

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Reads a record from a JSON object. Raises ValueError if it is not a record of this format."""
        record = super().from_json(content)
        if not _KEY.fullmatch(record.key) or not all(map(_RANK.fullmatch, record.ranks)):
            raise ValueError("the record's key or ranks cannot be names of folders")
        if not 0 <= record.compile_s <= _LONGEST_COMPILATION_S:
            raise ValueError(f"the record's compile_s is {record.compile_s}, which no compilation takes")
        return record


@dataclass(frozen=True, kw_only=True)
class SharedFiles(ArchiveRecord):
    """The record of files that any model's start can use: kernels, or what starts have learned."""

    family: str
    """The name of the folder in a location (`kernel_family`, `start_family`)."""
    name: str
    """The name of the archive in the family."""

    @property
    def archive_name(self) -> str:
        return f"{self.family}/{self.name}{ARCHIVE_SUFFIX}"


def kernel_family(
    versions: Mapping[str, str], hardware: Hardware, architectures: Sequence[str], contents: object = ()
) -> tuple[str, str]:
    """The families of Triton's kernels, and of the other compilers' kernels.

    Triton's depend on the GPUs' architectures (compute capabilities), so that a machine without a GPU can
    compile them. What the others compile or tune may depend on more. Triton hashes its own sources into the
    names of its kernels. FlashInfer compares times, so `contents` identifies the sources of the others.
    """
    name, facts = versions.get("vllm", "unknown"), [FORMAT, dict(sorted(versions.items()))]
    of_triton = _digest([*facts, hardware.machine, sorted(architectures)])[:_NUM_DIGITS]
    of_others = _digest([*facts, asdict(hardware), repr(contents)])[:_NUM_DIGITS]
    return f"triton-{name}-{of_triton}", f"kernels-{name}-{of_others}"


def start_family(versions: Mapping[str, str], installation: object) -> str:
    """The family of what starts learn. `installation` identifies interpreter and installed packages."""
    facts = [FORMAT, dict(sorted(versions.items())), repr(installation)]
    return f"starts-{versions.get('vllm', 'unknown')}-{_digest(facts)[:_NUM_DIGITS]}"


class ArchiveName(NamedTuple):
    """The parts of an archive's name, which show whether the archive fits. Some are shortened hashes."""

    start_id: str
    early_digest: str
    digest: str
    key: str
    ranks: str
    sources: str

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Splits a name into its parts. None if it is not the name of an archive."""
        parts = name.rpartition("/")[2].removesuffix(ARCHIVE_SUFFIX).split("-")
        return cls(*parts) if len(parts) == len(cls._fields) else None

    def has_digest(self, digest: str) -> bool:
        """Whether vLLM would look for the model of this archive if its factors had this digest."""
        return digest[:_NUM_DIGITS] in (self.early_digest, self.digest)


def present_architectures() -> tuple[str, ...]:
    """The compute capabilities of this machine's NVIDIA GPUs, such as `9.0`. Empty without such GPUs."""
    from base.machine.nvml import read_gpus  # noqa: PLC0415 - ctypes takes longer than all else here

    state = read_gpus()
    capabilities = {gpu.capability for gpu in state.gpus if gpu.capability} if state is not None else set()
    return tuple(f"{major}.{minor}" for major, minor in sorted(capabilities))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
