"""A full disk, or /dev/shm without room: the server serves, reports lost files, and loses no result."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from base.wording import format_bytes
from tests.e2e.chaos.small_disk import SmallDisk
from tests.e2e.server_process import ServerProcess
from tests.support.cli import run_cli
from tests.support.hub import HubServer

_ENDS_S = 200.0
_APPEND_LOG = ("sh", "-c", 'exec "$@" >>"$0" 2>&1')
"""A launcher that takes the name of a log file, then the command."""
_FULL_SCREEN = ("sh", "-c", 'exec "$@" >/dev/full 2>/dev/full', "sh")
_SHM = Path("/dev/shm")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


@pytest.fixture
def disk(folder: Path, request: pytest.FixtureRequest) -> Iterator[SmallDisk]:
    with SmallDisk(folder, getattr(request, "param", 256 << 10)) as disk:
        yield disk


@pytest.mark.parametrize("disk", [64 << 20], ids=["room for bytecode"], indirect=True)
@pytest.mark.parametrize(
    "bytecode", [{}, pytest.param({"PYTHONPYCACHEPREFIX": "bytecode"}, marks=pytest.mark.slow)], ids=["", "bytecode"]
)
def test_server_starts_serves_and_stops_with_all_its_files_on_a_full_disk(tiny_llama, folder, disk, bytecode):
    log = disk.path_inside(folder / "log")
    disk.fill()
    words = [str(tiny_llama), "--startup-report", f"{folder}/report.json"]
    launcher = (*disk.launcher, *_APPEND_LOG, str(folder / "log"))
    settings = {"VLLM_CACHE_ROOT": f"{folder}/cache", "PYTHONDONTWRITEBYTECODE": ""}
    settings |= {name: f"{folder}/{place}" for name, place in bytecode.items()}
    with ServerProcess(words, launcher=launcher, environment=settings) as server:
        assert server.complete(max_tokens=4) == 200
        assert log.read_text() == ""
        disk.make_room()
        assert server.complete(max_tokens=4) == 200
        assert server.terminate() == 0
    lines = log.read_text().splitlines()
    lost = "lines of this log were lost: standard error could not be written (No space left on device)"
    assert lost in next(line for line in lines if "(api)" in line)  # the engine's lines may come first
    assert any('"POST /v1/completions HTTP/1.1" 200' in line for line in lines[1:])
    assert "Traceback" not in "".join(lines)
    assert not disk.path_inside(folder / "report.json").exists()


def test_files_of_a_start_that_cannot_be_written_are_reported_and_no_part_is_left(
    start_server, folder, disk, tiny_llama
):
    old = disk.path_inside(folder / "report.json")
    old.write_text("of an earlier start")
    disk.fill()
    words = [str(tiny_llama), "--startup-report", f"{folder}/report.json"]
    with ServerProcess(words, launcher=disk.launcher, environment={"VLLM_CACHE_ROOT": f"{folder}/cache"}) as server:
        server.wait_logged("ready after")
        no_room = "No space left on device"
        server.wait_logged(f"the start-up report could not be written to {folder}/report.json: {no_room}")
        assert server.terminate() == 0
    assert old.read_text() == "of an earlier start"
    assert {path.name for path in disk.path_inside(folder).iterdir()} <= {"report.json", "ballast", "cache"}
    files = [path for path in disk.path_inside(folder / "cache").rglob("*") if path.is_file()]
    assert not any(path.name.startswith(".") for path in files)


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (["serve", "/no/such/model", "--port", "0"], 3),
        (["serve", "--port", "many"], 2),
        (["wait", "--timeout", "x"], 2),
    ],
)
def test_exit_codes_do_not_depend_on_room_for_the_message(words, exit_code):
    assert run_cli(*words, launcher=_FULL_SCREEN).returncode == exit_code


def test_output_that_cannot_be_written_is_an_error():
    with Path("/dev/full").open("wb") as full:
        done = run_cli("doctor", "--env", stdout=full)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: the output cannot be written: No space left on device. Free space, or write it elsewhere.\n"
    )


def test_download_without_room_names_its_size_and_folder(model_path, folder, disk):
    files = {"model.safetensors": os.urandom(4 << 20)}
    files |= {
        name: (model_path / name).read_bytes() for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
    }
    with HubServer().serving() as hub:
        size = format_bytes(hub.add("org/model", files).size)
        settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        words = ["org/model", "--download-dir", f"{folder}/hub"]
        with ServerProcess(words, launcher=disk.launcher, environment=settings, wait=False) as server:
            assert server.process.wait(_ENDS_S) == 3
            (line,) = [line for line in server.log.splitlines() if line.startswith("Error:")]
        prefetch = run_cli("prefetch", *words, "--json", launcher=disk.launcher, environment=settings)
    assert (prefetch.returncode, json.loads(prefetch.stdout)["state"]) == (6, "no_space")
    assert f"org/model could not be downloaded: {size} are missing and " in line
    assert f" are free in {folder}/hub: " in line
    assert "free space, or give another --download-dir" in line


@pytest.mark.parametrize(
    "method",
    ["forkserver", pytest.param("spawn", marks=pytest.mark.slow), pytest.param("fork", marks=pytest.mark.slow)],
)
def test_server_starts_and_serves_without_shared_memory(tiny_llama, method):
    with SmallDisk(_SHM, 4096, num_files=1) as disk:
        disk.fill()
        environment = {"VLLM_WORKER_MULTIPROC_METHOD": method}
        with ServerProcess([str(tiny_llama)], launcher=disk.launcher, environment=environment) as server:
            assert server.complete(max_tokens=4) == 200
            assert "/dev/shm has 0 bytes free" in server.log
            assert server.terminate() == 0
        assert [path.name for path in disk.path_inside(_SHM).iterdir()] == ["ballast"]
