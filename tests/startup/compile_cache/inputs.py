"""Archives, also byte by byte as `zipfile` would not write them, and folders that cannot be locations."""

import json
import os
import struct
import subprocess
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest

from startup.compile_cache.archive import MANIFEST, write_archive
from startup.compile_cache.record import CompiledModel, FileFacts, Hardware

_needs_root: Final = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
RECORD: Final = CompiledModel(
    key="ab" * 32,
    model="org/model",
    start_id="start",
    digest="late",
    early_digest="early",
    factors={"env": {"VLLM_USE_V1": True}},
    versions={"vllm": "0.32.0"},
    hardware=Hardware("x86_64", ("avx2",), ()),
    ranks=("rank_0_0",),
    compile_s=30.0,
    created_at="2026-11-23T22:00:00Z",
)
FILES: Final = {
    "vllm/a/graph.py": b"graph" * 5000,
    "vllm/a/empty": b"",
    "triton/x/kernel.so": bytes(3_000_000),
}


def save_archive(path: Path, files: Mapping[str, bytes] = FILES) -> CompiledModel:
    """Writes an archive with these files."""
    folder = path.with_suffix(".files")
    sources = {name: folder / name for name in files}
    for name, source in sources.items():
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_bytes(files[name])
    return write_archive(path, RECORD, sources)


@dataclass(frozen=True)
class Raw:
    """A member; what is None is as it should be."""

    name: bytes
    content: bytes = b""
    method: int = 8
    flags: int = 0
    attributes: int = 0o100600 << 16
    begin: int | None = None
    num_bytes: int | None = None
    header_name: bytes | None = None
    header_flags: int | None = None
    extra: bytes = b""
    junk: bytes = b""
    """Behind the deflated bytes, and counted with them."""
    gap: bytes = b""
    """Before it."""

    @property
    def packed(self) -> bytes:
        packer = zlib.compressobj(1, zlib.DEFLATED, -15)
        return packer.compress(self.content) + packer.flush() + self.junk

    @property
    def facts(self) -> FileFacts:
        return FileFacts(len(self.content) if self.num_bytes is None else self.num_bytes, _digest(self.content))


def manifest(members: Iterable[Raw], **others: Any) -> Raw:
    """With the sizes and digests of these members."""
    files = {member.name.decode("latin-1"): member.facts for member in members}
    return Raw(MANIFEST.encode(), json.dumps(asdict(RECORD.with_files(files)) | others).encode())


def archive(*members: Raw, own_manifest: Raw | None = None, **end: Any) -> bytes:
    """An archive of these members, and of a manifest."""
    return raw_zip([*members, own_manifest or manifest(members)], **end)


def raw_zip(members: Iterable[Raw], *, comment: bytes = b"", gap: bytes = b"", count: int | None = None) -> bytes:
    content, entries, num_entries = bytearray(), bytearray(), 0
    for member in members:
        content += member.gap
        packed, name = member.packed, member.header_name or member.name
        sizes = (zlib.crc32(member.content), len(packed), member.facts.size)
        begin = len(content) if member.begin is None else member.begin
        common = (member.method, 0, 33, *sizes)
        flags = member.flags if member.header_flags is None else member.header_flags
        content += struct.pack("<4s5H3L2H", b"PK\3\4", 20, flags, *common, len(name), len(member.extra))
        content += name + member.extra
        content += packed
        tail = (len(member.name), 0, 0, 0, 0, member.attributes, begin)
        entries += struct.pack("<4s6H3L5H2L", b"PK\1\2", 0x314, 20, member.flags, *common, *tail) + member.name
        num_entries += 1
    content += gap
    counts = (num_entries if count is None else count,) * 2
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *counts, len(entries), len(content), len(comment))
    return bytes(content + entries) + end + comment


def good(name: str = "vllm/a", content: bytes = b"content", **others: Any) -> Raw:
    return replace(Raw(name.encode(), content), **others)


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def _without_parent(location: Path) -> None:
    """Nothing is there."""


def _file_instead(location: Path) -> None:
    location.parent.mkdir()
    location.write_text("text")


def _of_another_user(location: Path) -> None:
    location.mkdir(parents=True)
    os.chown(location, 12345, 12345)


def _writable_by_all(location: Path) -> None:
    location.mkdir(parents=True)
    location.chmod(0o777)


def _full(location: Path) -> None:
    _mount(location, "size=64k")


def _read_only(location: Path) -> None:
    _mount(location, "ro")


def unmount(location: Path) -> None:
    """After a file system was mounted there."""
    if os.path.ismount(location):
        subprocess.run(("umount", str(location)), check=True)


def _mount(location: Path, option: str) -> None:
    location.mkdir(parents=True)
    mount = ("mount", "-t", "tmpfs", "-o", f"mode=755,{option}", "tmpfs", str(location))
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")


UNUSABLE: Final = (_without_parent, _file_instead, pytest.param(_of_another_user, marks=_needs_root), _writable_by_all)
"""Each makes a location in a folder that does not exist yet."""
MOUNTED: Final = tuple(pytest.param(make, marks=_needs_root) for make in (_full, _read_only))
"""Each mounts a file system, which `unmount` removes."""
