"""Fixtures: addresses in fake servers for S3 and Google Cloud Storage, for the stores' real clients."""

import json
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from hashlib import sha256
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any, Final
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import pytest

from startup.compiled_models.archive import MANIFEST, write_archive
from startup.compiled_models.record import CompiledModel, FileFacts, Hardware
from tests.support.s3_server import s3_server


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fake S3 server. A lock joins its check of a request's condition with the storing of the object."""
    import s3fs
    from moto.s3.responses import S3Response

    lock = threading.Lock()

    def one_by_one(handle: Callable[..., Any]) -> Callable[..., Any]:
        def handle_one(*arguments: Any) -> Any:
            with lock:
                return handle(*arguments)

        return handle_one

    for method in ("put", "post"):
        monkeypatch.setattr(
            S3Response, f"_key_response_{method}", one_by_one(getattr(S3Response, f"_key_response_{method}"))
        )
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield "s3://models/compiled"
    s3fs.S3FileSystem.clear_instance_cache()  # it has the address of this server


@pytest.fixture
def gs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fake server for Google Cloud Storage. The fixture adds conditions of requests, which it lacks."""
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import gcsfs
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.server import create_server

    lock = threading.Lock()

    def with_condition(handle: Callable[..., None]) -> Callable[..., None]:
        def handle_one(request: Any, response: Any, storage: Any) -> None:
            with lock:
                name = request.query.get("name", [None])[0] or request.data["meta"]["name"]
                is_stored = any(found["name"] == name for found in storage.get_file_list("models")[0])
                if request.query.get("ifGenerationMatch") == ["0"] and is_stored:
                    response.status = HTTPStatus.PRECONDITION_FAILED
                else:
                    handle(request, response, storage)

        return handle_one

    for name in ("_multipart_upload", "_create_resumable_upload"):
        monkeypatch.setattr(objects, name, with_condition(getattr(objects, name)))
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="models")
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server._api._httpd.server_address[1]}")
    monkeypatch.setenv("FSSPEC_GS_TOKEN", "anon")
    yield "gs://models/compiled"
    server.stop()
    gcsfs.GCSFileSystem.clear_instance_cache()


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
