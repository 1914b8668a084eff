"""Compiled models of machines that share a location; helpers are killed at any time."""

import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Final

import pytest

from startup.compile_cache import local
from startup.compile_cache.archive import read_record, unpack, write_archive
from startup.compile_cache.location import open_location
from startup.compile_cache.messages import AddJob, FetchJob
from startup.compile_cache.process import SharingProcess
from startup.compile_cache.record import CompiledModel, Hardware
from startup.compile_cache.sharing import add, fetch
from tests.startup.compile_cache.inputs import MOUNTED, UNUSABLE, unmount

NUM_MACHINES: Final = 10
NUM_KILLS: Final = 50


def _record(**fields: object) -> CompiledModel:
    facts = {
        "key": "ab" * 32,
        "model": "org/model",
        "start_id": "start",
        "digest": "digest",
        "early_digest": "early",
        "factors": {},
        "versions": {"vllm": "0.32.0"},
        "hardware": Hardware.present(),
        "ranks": ("rank_0_0", "rank_1_0"),
        "root": "/cache",
        "compile_s": 30.0,
        "created_at": "2026-11-23T22:00:00+00:00",
    }
    return CompiledModel(**{**facts, **fields})  # type: ignore[arg-type]


class Machine:
    """Its caches are below one folder; `use` makes them those of this process and of its helpers."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, kernels: Path | None = None) -> None:
        self.folder = folder
        self._kernels = kernels or folder / "triton"
        self._monkeypatch = monkeypatch

    def use(self) -> "Machine":
        self._monkeypatch.setenv("VLLM_CACHE_ROOT", str(self.folder))
        self._monkeypatch.setenv("TRITON_CACHE_DIR", str(self._kernels))
        self._monkeypatch.setenv("HOME", str(self.folder))
        return self

    def compile(self, record: CompiledModel, num_bytes: int = 200_000) -> dict[str, bytes]:
        """Writes what vLLM would; returns the content by name."""
        base = f"vllm/{local.AOT}/{record.key}"
        names = (*(f"{base}/{rank}/model" for rank in record.ranks), f"{base}/inductor_cache/x/x.so")
        files = {name: random.Random(name).randbytes(num_bytes) for name in names}
        for name, content in files.items():
            self.path(name).parent.mkdir(parents=True, exist_ok=True)
            self.path(name).write_bytes(content)
        return files

    def path(self, name: str) -> Path:
        cache, _, path = name.partition("/")
        return (self.folder if cache == "vllm" else self._kernels) / path

    def has(self, files: dict[str, bytes]) -> bool:
        return all(self.path(name).read_bytes() == content for name, content in files.items())


@pytest.fixture
def make_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Machine]:
    return lambda name: Machine(tmp_path / name, monkeypatch).use()


@pytest.fixture
def location(tmp_path: Path) -> Path:
    return tmp_path / "shared"


def _fetch_job(location: object, record: CompiledModel, folder: Path, digest: str = "") -> FetchJob:
    return FetchJob(
        locations=(str(location),),
        model=record.model,
        versions=record.versions,
        start_id=record.start_id,
        digest=digest,
        found_folder=str(folder / "found"),
    )


def _archives(location: Path) -> list[Path]:
    """Checks that each is whole."""
    found = sorted(location.glob("*/*.zip"))
    for path in found:
        with tempfile.TemporaryDirectory() as scratch, path.open("rb") as file:
            unpack(file, Path(scratch), max_bytes=1 << 30)
    return found


def test_another_machine_gets_all_files_once(make_machine, location, tmp_path):
    record = _record()
    files = make_machine("first").compile(record)
    reports = [add(AddJob(records=(record,), location=str(location))) for _ in range(2)]
    assert [(report.num_models, report.problems) for report in reports] == [(1, []), (0, [])]
    second = make_machine("second")
    job = _fetch_job(location, record, tmp_path)
    assert [fetch(job).num_models for _ in range(2)] == [1, 0]
    assert second.has(files)
    (found,) = local.read_records()
    assert found.files.keys() == files.keys()
    assert local.is_shared(found, str(location))


def test_files_of_no_compiler_are_not_installed(make_machine, tmp_path):
    make_machine("first")
    for name in ("vllm/vllm_cli/imports/x.code", "home/x"):
        path = tmp_path / "unpacked" / name
        path.parent.mkdir(parents=True)
        path.touch()
    local.install(tmp_path / "unpacked")
    assert not list(local.caches()["vllm"].rglob("*.code"))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param({}, {"same", "flags"}, id="flags-of-this-start"),
        pytest.param({"start_id": "of another start"}, {"newest"}, id="newest"),
        pytest.param({"digest": "digest of flags"}, {"flags"}, id="digest"),
        pytest.param({"digest": "unknown"}, set(), id="unknown-digest"),
        pytest.param({"model": "org/other"}, set(), id="other-model"),
        pytest.param({"versions": {"vllm": "0.33.0"}}, set(), id="other-version"),
    ],
)
def test_what_is_fetched(asked, expected, make_machine, location, tmp_path):
    """Of several compiled models in one location and one cache, also of another version of vLLM."""
    records = {
        "same": _record(key="1" * 64),
        "flags": _record(key="2" * 64, digest="digest of flags"),
        "newest": _record(key="3" * 64, start_id="newer", created_at="2026-11-23T23:00:00+00:00"),
        "version": _record(key="4" * 64, versions={"vllm": "0.29.0"}, created_at="2026-11-23T23:59:00+00:00"),
    }
    first = make_machine("first")
    for record in records.values():
        first.compile(record, 100)
    assert add(AddJob(records=tuple(records.values()), location=str(location))).num_models == len(records)
    make_machine("second")
    report = fetch(replace(_fetch_job(location, records["same"], tmp_path), **asked))
    assert not report.problems
    assert {name for name, record in records.items() if local.is_installed(record)} == expected


@pytest.mark.thorough
def test_of_ten_machines_that_add_at_once_one_wins(make_machine, location, tmp_path):
    record = _record()
    helpers = []
    for number in range(NUM_MACHINES):
        files = make_machine(f"machine-{number}").compile(record, 2_000_000)
        helpers.append(SharingProcess(AddJob(records=(record,), location=str(location))))
    reports = [helper.result() for helper in helpers]
    assert sum(report.num_models for report in reports) == 1
    assert not any(report.problems for report in reports)
    assert len(_archives(location)) == 1
    assert [path.name for path in location.rglob("*.part")] == []
    last = make_machine("last")
    assert fetch(_fetch_job(location, record, tmp_path)).num_models == 1
    assert last.has(files)


def _cut(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-100])


def _cut_middle(archive: Path) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content[:50_000] + content[60_000:])


def _flip(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)


def _rename(archive: Path) -> None:
    archive.rename(archive.with_name(f"{'c' * 32}-00000000.zip"))


def _change_hash(archive: Path) -> None:
    """Writes the archive anew with a record that has other hashes, as an attacker without the files would."""
    import zipfile

    with zipfile.ZipFile(archive) as old:
        contents = {info.filename: old.read(info) for info in old.infolist()}
    manifest = json.loads(contents["manifest.json"])
    name = next(iter(manifest["files"]))
    manifest["files"][name][1] = sha256(b"other").hexdigest()
    contents["manifest.json"] = json.dumps(manifest).encode()
    archive.unlink()
    with zipfile.ZipFile(archive, "x", zipfile.ZIP_DEFLATED) as new:
        for filename, content in contents.items():
            new.writestr(zipfile.ZipInfo(filename), content, zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize("damage", [_cut, _cut_middle, _flip, _rename, _change_hash])
def test_a_damaged_archive_is_named_installs_nothing_and_is_replaced(damage, make_machine, location, tmp_path):
    record = _record()
    make_machine("first").compile(record)
    add(AddJob(records=(record,), location=str(location)))
    (archive,) = location.glob("*/*.zip")
    damage(archive)
    second = make_machine("second")
    report = fetch(_fetch_job(location, record, tmp_path))
    assert report.num_models == 0
    (problem,) = report.problems
    assert str(location) in problem
    assert "\n" not in problem
    assert not (second.folder / local.AOT).exists()
    assert not local.read_records()
    second.compile(record)
    assert add(AddJob(records=(record,), location=str(location))).num_models == 1
    assert len(_archives(location)) == 1


@pytest.mark.parametrize("make", UNUSABLE)
def test_a_location_that_cannot_be_used_is_one_problem(make, make_machine, tmp_path):
    location = tmp_path / "parent" / "shared"
    make(location)
    record = _record()
    make_machine("first").compile(record)
    reports = [
        add(AddJob(records=(record,), location=str(location))),
        fetch(_fetch_job(location, record, tmp_path)),
    ]
    for report in reports:
        assert report.num_models == 0
        (problem,) = report.problems
        assert str(location) in problem
    assert local.read_records(), "the record is for this machine, too"


@pytest.fixture(params=MOUNTED)
def mounted(request, location) -> Iterator[Path]:
    """A file system that is too small, or read-only."""
    request.param(location)
    yield location
    unmount(location)


def test_a_full_or_read_only_location_is_one_problem(mounted, make_machine, tmp_path):
    record = _record()
    make_machine("first").compile(record)
    report = add(AddJob(records=(record,), location=str(mounted)))
    assert report.num_models == 0
    (problem,) = report.problems
    assert str(mounted) in problem
    assert not [path for path in mounted.rglob("*") if path.is_file()]
    assert fetch(_fetch_job(mounted, record, tmp_path)).problems == []


def _kill_at(num_bytes: float, job: AddJob | FetchJob, *folders: Path) -> bool:
    """Kills the helper once it has written so many bytes into these folders; False if it has ended before."""
    helper = SharingProcess(job)
    while helper._helper.poll() is None and _written(*folders) < num_bytes:
        time.sleep(0.0005)
    helper.close()
    return bool(helper.result().problems)


def _written(*folders: Path) -> int:
    """The size of all files, as far as they are still there."""
    sizes = 0
    for folder in folders:
        for parent, _, names in os.walk(folder):  # unlike rglob, passes over folders that go meanwhile
            for name in names:
                with suppress(OSError):
                    sizes += Path(parent, name).stat().st_size
    return sizes


def _age(folder: Path) -> None:
    """Makes what killed helpers have left as old as it is an hour later."""
    for path in (folder / "vllm_cli").glob("incoming-*"):
        os.utime(path, (1, 1))


@pytest.mark.thorough
def test_a_fetching_helper_that_is_killed_leaves_all_or_nothing(make_machine, location, tmp_path, monkeypatch):
    """Also where the kernels' cache is on another file system."""
    record = _record()
    first = make_machine("first")
    files = first.compile(record, 4_000_000)
    files["triton/k.so"] = bytes(8_000_000)
    first.path("triton/k.so").parent.mkdir()
    first.path("triton/k.so").write_bytes(files["triton/k.so"])
    archive = tmp_path / "archive"
    full = write_archive(archive, record, {name: first.path(name) for name in files})
    open_location(str(location)).add(full.archive_name, archive)
    job = _fetch_job(location, record, tmp_path)
    chance, num_killed = random.Random(34), 0
    total = sum(map(len, files.values()))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        for number in range(NUM_KILLS):
            kernels = Path(memory, str(number))
            machine = Machine(tmp_path / f"second-{number}", monkeypatch, kernels).use()
            num_killed += _kill_at(chance.uniform(0, 1.1) * total, job, machine.folder, kernels)
            assert all(map(local.is_installed, local.read_records()))
            assert not local.is_installed(record) or machine.has(files)
            left = [name for name in files if machine.path(name).exists()]
            assert all(machine.path(name).read_bytes() == files[name] for name in left), "a file is half"
            _age(machine.folder)
            assert fetch(job).problems == []
            assert machine.has(files)
            shutil.rmtree(kernels)
    assert num_killed > NUM_KILLS // 2


@pytest.mark.thorough
def test_an_adding_helper_that_is_killed_leaves_no_half_archive(make_machine, location, monkeypatch):
    monkeypatch.setattr("startup.compile_cache.process._WHEN_IDLE", "")  # beside other tests it would hardly run
    record = _record()
    first = make_machine("first")
    files = first.compile(record, 4_000_000)
    job = AddJob(records=(record,), location=str(location))
    add(job)
    (archive,) = _archives(location)
    total = archive.stat().st_size
    chance, num_killed = random.Random(34), 0
    incoming = first.folder / "vllm_cli"
    for _ in range(NUM_KILLS):
        shutil.rmtree(location)
        location.mkdir()
        num_killed += _kill_at(chance.uniform(0, 2.2) * total, job, incoming, location)
        assert len(_archives(location)) <= 1
        for left in incoming.glob("incoming-*"):
            shutil.rmtree(left)
    assert num_killed > NUM_KILLS // 2
    assert add(job).problems == []
    with _archives(location)[0].open("rb") as file:
        assert read_record(file).files.keys() == files.keys()


def test_what_killed_helpers_have_left_is_removed(make_machine, location):
    machine = make_machine("first")
    record = _record()
    machine.compile(record, 100)
    for name, is_old in {"incoming-old": True, "incoming-new": False}.items():
        folder = machine.folder / "vllm_cli" / name
        folder.mkdir(parents=True)
        if is_old:
            os.utime(folder, (1, 1))
    add(AddJob(records=(record,), location=str(location)))
    assert [path.name for path in (machine.folder / "vllm_cli").glob("incoming-*")] == ["incoming-new"]
