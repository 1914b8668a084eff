"""Archives in object stores: races of writers, faults, and the number of requests."""

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, patch

import pytest

from startup.compiled_models import location as module
from startup.compiled_models.archive import read_record
from startup.compiled_models.location import LocationError, open_location
from startup.compiled_models.record import CompiledModel
from startup.files.download import object_store
from tests.startup.compiled_models.conftest import save_archive
from tests.startup.compiled_models.test_location import NAME, problem
from tests.support.s3_server import SECRET

pytestmark = pytest.mark.thorough


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_archive(tmp_path / "a.zip")
    return tmp_path / "a.zip"


def test_a_record_costs_one_request_after_the_listing(s3, tmp_path):
    path = tmp_path / "a.zip"
    save_archive(path, {"vllm/a": os.urandom(2_000_000)})
    location: Any = open_location(s3)
    location.add(NAME, path)
    location._system.pipe_file(f"{location._root}/other/readme.txt", b"")
    assert [archive.name for archive in location.list()] == [NAME]
    count = patch.object(location._system, "_cat_file", wraps=location._system._cat_file)
    with count as read, location.open(NAME) as file:
        read_record(file, CompiledModel)
    assert [call.kwargs["end"] - call.kwargs["start"] for call in read.call_args_list] == [128 << 10]
    with location.open(NAME) as file:
        assert file.read() == path.read_bytes()


@pytest.mark.parametrize("is_large", [False, True], ids=["one request", "parts"])
@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_of_several_writers_at_once_one_adds_the_archive(scheme, is_large, path, tmp_path, monkeypatch, request):
    location: Any = open_location(request.getfixturevalue(scheme))
    monkeypatch.setattr(location._system, "_exists", AsyncMock(return_value=False))
    source = tmp_path / "large" if is_large else path
    if is_large:
        source.write_bytes(os.urandom(21_000_000))
    with ThreadPoolExecutor(4) as pool:
        results = [*pool.map(lambda _: location.add(NAME, source), range(1 if is_large and scheme == "gs" else 4))]
    assert sorted(results) == [False] * (len(results) - 1) + [True]
    assert not location.add(NAME, source)
    assert not location.add(NAME, path)
    assert [archive.size for archive in location.list()] == [source.stat().st_size]


@pytest.mark.parametrize("code", ["PreconditionFailed", "ConditionalRequestConflict"])
def test_every_way_of_s3_to_say_that_an_object_exists_is_understood(code, s3, path, monkeypatch):
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    location: Any = open_location(s3)
    error = translate_boto_error(ClientError({"Error": {"Code": code, "Message": "no"}}, "PutObject"))
    monkeypatch.setattr(location._system, "_put_file", AsyncMock(side_effect=error))
    assert location.add(NAME, path) is False


def test_azures_client_is_told_not_to_overwrite():
    import inspect

    import adlfs

    names = inspect.signature(adlfs.AzureBlobFileSystem._put_file).parameters
    assert set(module._PUT_OPTIONS["az"]) <= set(names)


def test_faults_are_one_line_with_the_address_and_a_remedy(s3, path, monkeypatch):
    missing = open_location("s3://nothing/compiled")
    assert problem(missing.list).startswith("s3://nothing/compiled does not exist: correct the address")
    assert "nothing" in problem(lambda: missing.add(NAME, path))
    monkeypatch.setattr("startup.files.model.model_place.find_spec", lambda _: None)
    assert "needs the package s3fs: pip install" in problem(lambda: open_location(s3))


def test_a_store_that_cannot_be_reached_is_an_error(s3, path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    location = open_location(s3)
    for work in (location.list, lambda: location.add(NAME, path), lambda: location.open(NAME)):
        reason = problem(work)
        assert reason.startswith("s3://models/compiled")
        assert reason.endswith(": check the address and the network")
        assert SECRET not in reason


@pytest.mark.parametrize("name", ["_STALL_S", "_LONGEST_REQUEST_S"])
@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_store_that_hangs_is_given_up(scheme, name, path, monkeypatch, request):
    address = request.getfixturevalue(scheme)
    monkeypatch.setattr(object_store if name == "_STALL_S" else module, name, 0.3)
    monkeypatch.setattr(module, "_SLOWEST_UPLOAD", 1e9)
    if name == "_STALL_S" and scheme == "gs":
        monkeypatch.setattr(module, "_LONGEST_REQUEST_S", 3.0)  # gcsfs repeats the request six times
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        location = open_location(address)
        location._sizes[NAME] = 10  # type: ignore[attr-defined]
        monkeypatch.setattr(module, "_LONGEST_RANGE_S", 0.3)
        works = (location.list, lambda: location.add(NAME, path), lambda: location.open(NAME).read())
        for work in works:
            assert problem(work).endswith(": check the address and the network")


def test_an_object_that_was_cut_is_an_error(s3, path, tmp_path):
    location: Any = open_location(s3)
    location.add(NAME, path)
    location.list()
    location._system.pipe_file(f"{location._root}/{NAME}", b"short")
    with pytest.raises((LocationError, ValueError)), location.open(NAME) as file:
        read_record(file, CompiledModel)
    with pytest.raises((LocationError, ValueError)), location.open_whole(NAME, tmp_path) as file:
        read_record(file, CompiledModel)
