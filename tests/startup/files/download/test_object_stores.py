"""Models from object stores: the stores' real clients with fake servers for S3 and Google Cloud Storage."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from startup.errors import ModelNotFoundError
from startup.files.download.obtain import begin_download, resolve_model
from startup.files.download.repository import PART_ENDING
from startup.files.model.file_plan import plan_files
from startup.files.model.model_request import ModelRequest
from tests.support.s3_server import SECRET, s3_server

pytestmark = pytest.mark.thorough

WEIGHTS = os.urandom(9_000_000)
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "1_Pooling/config.json": b"{}",
    "model.safetensors": WEIGHTS,
}
OTHERS = {"README.md": b"#", "pytorch_model.bin": b"x"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # it is about the hub only
    return tmp_path / "cache" / "vllm_cli" / "objects"


@pytest.fixture
def put_s3(monkeypatch: pytest.MonkeyPatch):
    with s3_server() as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        yield s3.put


@pytest.fixture
def put_gs(monkeypatch: pytest.MonkeyPatch):
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="models")
    server.start()
    port = server._api._httpd.server_address[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("FSSPEC_GS_TOKEN", "anon")
    yield _put_in_gs
    server.stop()


def _put_in_gs(objects: dict[str, bytes]) -> None:
    """Writes objects in a new process, because fsspec's thread never ends."""
    code = (
        "import fsspec, pickle, sys; fs = fsspec.filesystem('gs');"
        "[fs.pipe_file(f'models/{key}', body) for key, body in pickle.load(sys.stdin.buffer).items()]"
    )
    environment = {**os.environ, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(objects), env=environment, check=True)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put_model(put) -> None:
    objects = {f"team/llama/{name}": body for name, body in (FILES | OTHERS).items()}
    put(objects | {"team/llama-2/config.json": b"other"})


def problem(address: str) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model(ModelRequest(model=address))
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_the_files_that_a_start_reads_are_downloaded_once(scheme, cache, request):
    put_model(request.getfixturevalue(f"put_{scheme}"))
    asked = ModelRequest(model=f"{scheme}://models/team/llama/")
    folder = resolve_model(asked).path
    assert read_tree(folder) == FILES
    assert folder.is_relative_to(cache)
    with begin_download(plan_files(asked), lambda _: None) as again:
        assert again.result() == (folder,)
        assert again.report.fetched_bytes == 0


def test_a_changed_object_makes_a_new_folder_and_only_it_is_fetched(put_s3):
    put_model(put_s3)
    put_s3({"team/llama/../escape.json": b"{}"})  # a name that leaves the folder is not used
    asked = ModelRequest(model="s3://models/team/llama")
    before = resolve_model(asked).path
    put_s3({"team/llama/config.json": b'{"model_type": "qwen2"}'})
    with begin_download(plan_files(asked), lambda _: None) as changed:
        (after,) = changed.result()
        assert changed.report.fetched_bytes == len(b'{"model_type": "qwen2"}')
    assert read_tree(after) == FILES | {"config.json": b'{"model_type": "qwen2"}'}
    assert read_tree(before) == FILES


def test_a_killed_download_is_continued(put_s3, cache):
    put_model(put_s3)
    asked = ModelRequest(model="s3://models/team/llama")
    folder = resolve_model(asked).path
    blob = (folder / "model.safetensors").resolve()
    shutil.rmtree(folder)
    blob.with_name(blob.name + PART_ENDING).write_bytes(WEIGHTS[:5_000_000])
    blob.unlink()
    with begin_download(plan_files(asked), lambda _: None) as again:
        assert read_tree(again.result()[0]) == FILES
        assert again.report.fetched_bytes == len(WEIGHTS) - 5_000_000


def test_what_is_on_disk_is_used_while_the_store_cannot_be_reached(put_s3, monkeypatch, caplog):
    put_model(put_s3)
    asked = ModelRequest(model="s3://models/team/llama")
    folder = resolve_model(asked).path
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert resolve_model(asked).path == folder
    assert "s3://models/team/llama cannot be read: " in caplog.text
    assert "Using the files on disk of" in caplog.text
    assert problem("s3://models/team/other").startswith("s3://models/team/other cannot be read: ")


def test_a_wrong_address_is_one_line(put_s3):
    put_s3({"team/llama/config.json": b"{}"})
    assert problem("s3://models/nothing") == "s3://models/nothing has no files: correct the address"
    assert problem("s3://nothing/llama").startswith("s3://nothing/llama does not exist: correct the address")
    assert "has no weights" in problem("s3://models/team/llama")


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("startup.files.model.model_place.find_spec", lambda _: None)
    expected = "s3://models/llama needs the package s3fs: pip install '.[objectstore]' in a clone of vllm-cli"
    assert problem("s3://models/llama") == expected
