"""Fixtures: addresses in fake servers for S3 and Google Cloud Storage, for the stores' real clients."""

import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import pytest

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
