"""Archives of compiled models, whole and damaged."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Final
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from startup.compiled_models.archive import MANIFEST, write_archive
from startup.compiled_models.record import CompiledModel, FileFacts, Hardware

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
    folder = path.with_suffix(".files")
    sources = {name: folder / name for name in files}
    for name, source in sources.items():
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_bytes(files[name])
    return write_archive(path, RECORD, sources)


def archive(
    content: Mapping[str, bytes] | None = None,
    *,
    files: Mapping[str, FileFacts] | None = None,
    method: int = ZIP_DEFLATED,
    **others: Any,
) -> bytes:
    """An archive with these contents, which `write_archive` might refuse. The default is one small file.

    Args:
        content: name of a file -> its content.
        files: the files in the record. The default is the files in `content`.
        method: the compression method.
        others: values that replace those of other fields in `RECORD`.
    """
    content = {"vllm/a": b"content"} if content is None else content
    record = asdict(RECORD.with_files(facts(content) if files is None else files)) | others
    return zipped({**content, MANIFEST: json.dumps(record).encode()}, method)


def facts(content: Mapping[str, bytes]) -> dict[str, FileFacts]:
    """The entries in a record for files with these contents."""
    return {name: FileFacts(len(each), sha256(each).hexdigest()) for name, each in content.items()}


def zipped(content: Mapping[str, bytes], method: int = ZIP_DEFLATED) -> bytes:
    """A zip file with these members."""
    file = BytesIO()
    with ZipFile(file, "w", method, compresslevel=1) as whole:
        for name, each in content.items():
            whole.writestr(ZipInfo(name), each, method)
    return file.getvalue()


def deflated(content: bytes) -> bytes:
    """The compressed content, as in a member of `zipped`."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()
