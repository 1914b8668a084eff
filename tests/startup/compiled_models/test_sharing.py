"""Machines share compiled models by a location. Helpers may be killed at any time."""

import json
import math
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Final

import pytest

from startup.compiled_models import local
from startup.compiled_models.archive import unpack, write_archive
from startup.compiled_models.location import open_location
from startup.compiled_models.record import CompiledModel, Hardware
from startup.compiled_models.sharing import add, fetch
from startup.compiled_models.sharing_process import AddJob, FetchJob, SharingProcess
from tests.startup.compiled_models.conftest import RECORD
from tests.support.waiting import is_gone

NUM_KILLS: Final = 50


def _record(**fields: object) -> CompiledModel:
    own = {"digest": "digest", "hardware": Hardware.present(), "ranks": ("rank_0_0", "rank_1_0")}
    return replace(RECORD, **{**own, **fields})  # type: ignore[arg-type]


class Machine:
    """A machine whose caches are below one folder. After `use`, this process and its helpers use them."""

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
        """Writes the files that vLLM would write for a compiled model. Returns name -> content."""
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


@pytest.fixture
def shared(make_machine: Callable[[str], Machine], location: Path) -> CompiledModel:
    """A compiled model that the machine `first` has added to the location."""
    record = _record()
    make_machine("first").compile(record)
    assert add(_add_job(record, location=location)).num_models == 1
    return record


def _fetch_job(location: object, record: CompiledModel, folder: Path, digest: str = "") -> FetchJob:
    return FetchJob(
        locations=(str(location),),
        model=record.model,
        versions=record.versions,
        start_id=record.start_id,
        digest=digest,
        found_folder=str(folder / "found"),
    )


def _add_job(*records: CompiledModel, location: object, began_s: float = math.inf) -> AddJob:
    return AddJob(records=records, location=str(location), began_s=began_s)


def _archives(location: Path) -> list[Path]:
    found = sorted(location.glob("*/*.zip"))
    for path in found:
        with tempfile.TemporaryDirectory() as scratch, path.open("rb") as file:
            unpack(file, Path(scratch), CompiledModel, max_bytes=1 << 30)
    return found


def test_another_machine_gets_all_files_once(make_machine, location, tmp_path):
    """Both machines report the size of the archive."""
    record = _record()
    files = make_machine("first").compile(record)
    reports = [add(_add_job(record, location=location)) for _ in range(2)]
    assert [(report.num_models, report.problems) for report in reports] == [(1, []), (0, [])]
    second = make_machine("second")
    job = _fetch_job(location, record, tmp_path)
    fetched = [fetch(job) for _ in range(2)]
    assert [report.num_models for report in fetched] == [1, 0]
    assert fetched[0].num_bytes == reports[0].num_bytes == _archives(location)[0].stat().st_size
    assert second.has(files)
    (found,) = local.read_records()
    assert found.files.keys() == files.keys()
    assert {path.stat().st_mode & 0o777 for path in local.records_folder().glob("*.json")} == {0o600}


def _triton_kernel(folder: Path) -> tuple[Path, dict[str, str]]:
    """Writes a kernel as Triton does. Returns Triton's list of the kernel's files, and the paths in it."""
    paths = {name: str(folder / name) for name in ("k.cubin", "k.json")}
    folder.mkdir(parents=True)
    for path in paths.values():
        Path(path).write_bytes(b"kernel")
    group = folder / "__grp__k.json"
    group.write_text(json.dumps({"child_paths": paths}))
    return group, paths


def test_triton_finds_the_kernels_of_a_machine_with_other_folders(make_machine, location, tmp_path):
    """Also the kernels beside a compiled model are found. Triton's lists of files have absolute paths."""
    record = _record()
    places = {"AOT": f"{local.AOT}/{record.key}/inductor_cache/triton/0/KEY", "own": "triton/KEY"}
    first = make_machine("first")
    first.compile(record, 10)
    for place in places.values():
        _triton_kernel(first.folder / place)
    assert add(_add_job(record, location=location, began_s=0.0)).problems == []
    second = make_machine("second")
    shutil.rmtree(first.folder)
    assert fetch(_fetch_job(location, record, tmp_path)).problems == []
    for place in places.values():
        paths = json.loads((second.folder / place / "__grp__k.json").read_text())["child_paths"]
        assert paths == {name: str(second.folder / place / name) for name in ("k.cubin", "k.json")}
        assert all(Path(path).read_bytes() == b"kernel" for path in paths.values())
    (found,) = local.read_records()
    assert local.damaged_file(found) is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param('{"child_paths": {"../../../x": "/etc/x"}}', ["KEY/x"], id="outside"),
        pytest.param("[" * 100_000, None, id="deep"),
        pytest.param("{", None, id="cut"),
    ],
)
def test_a_list_that_triton_has_not_written_leads_nowhere(content, expected, make_machine, tmp_path):
    machine = make_machine("first")
    group = tmp_path / "unpacked/triton/KEY/__grp__k.json"
    group.parent.mkdir(parents=True)
    group.write_text(content)
    local.install(tmp_path / "unpacked")
    installed = machine.path("triton/KEY/__grp__k.json").read_text()
    if expected is None:
        assert installed == content
    else:
        paths = json.loads(installed)["child_paths"].values()
        assert [str(Path(path).relative_to(machine.path("triton"))) for path in paths] == expected


def test_a_cache_that_cannot_be_written_to_is_one_problem(make_machine, location, tmp_path, monkeypatch):
    """The compiled model is installed in spite of the problem."""
    record = _record()
    first = make_machine("first")
    files = first.compile(record, 10)
    for name in ("a", "b"):
        _triton_kernel(first.path(f"triton/{name}"))
    add(_add_job(record, location=location, began_s=0.0))
    second = make_machine("second")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/dev/null/triton")
    report = fetch(_fetch_job(location, record, tmp_path))
    assert (report.num_models, second.has(files)) == (1, True)
    assert report.problems == ["kernels cannot be written to /dev/null/triton: Not a directory"]


@pytest.mark.parametrize(
    ("variable", "cache", "below"),
    [
        ("TRITON_HOME", "triton", ".triton/cache"),
        ("TRITON_CACHE_DIR", "triton", ""),
        ("FLASHINFER_WORKSPACE_BASE", "flashinfer", ".cache/flashinfer"),
        ("HUMMING_CACHE_DIR", "humming", ""),
        ("TILELANG_CACHE_DIR", "tilelang", ""),
    ],
)
def test_kernels_are_where_the_compilers_variables_say(variable, cache, below, make_machine, monkeypatch):
    machine = make_machine("first")
    monkeypatch.delenv("TRITON_CACHE_DIR")
    defaults = local.caches()
    assert all(folder.is_relative_to(machine.folder) for folder in defaults.values())
    monkeypatch.setenv(variable, "/other")
    assert local.caches() == {**defaults, cache: Path("/other", below)}


@pytest.mark.parametrize(
    "name",
    [
        *("vllm/vllm_cli/imports/x.code", "home/x.code", "deep_gemm/a/b/x.code", "vllm/triton/x.code"),
        *("triton", "vllm", "vllm/torch_compile_cache", f"vllm/{local.AOT}"),
    ],
)
def test_only_files_of_compilers_are_installed_and_none_in_the_place_of_a_folder(name, make_machine, tmp_path):
    machine = make_machine("first")
    path = tmp_path / "unpacked" / name
    path.parent.mkdir(parents=True)
    path.touch()
    local.install(tmp_path / "unpacked")
    assert not list(machine.folder.rglob("*.code"))
    assert not any(folder.is_file() for cache in local.caches().values() for folder in (cache, *cache.glob("*")))
    assert not (local.vllm_root() / local.AOT).exists()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param({}, {"same", "flags"}, id="flags-of-this-start"),
        pytest.param({"start_id": "other"}, {"newest"}, id="newest"),
        pytest.param({"digest": "flags"}, {"flags"}, id="digest"),
        pytest.param({"digest": "unknown"}, set(), id="unknown-digest"),
        pytest.param({"model": "org/other"}, set(), id="other-model"),
        pytest.param({"versions": {"vllm": "0.33.0"}}, set(), id="other-version"),
    ],
)
def test_what_is_fetched(asked, expected, make_machine, location, tmp_path):
    """The location has several compiled models, also one for another version of vLLM."""
    records = {
        "same": _record(key="1" * 64),
        "flags": _record(key="2" * 64, digest="flags"),
        "newest": _record(key="3" * 64, start_id="newer", created_at="2026-11-23T23:00:00+00:00"),
        "version": _record(key="4" * 64, versions={"vllm": "0.29.0"}, created_at="2026-11-23T23:59:00+00:00"),
    }
    first = make_machine("first")
    for record in records.values():
        first.compile(record, 100)
    assert add(_add_job(*records.values(), location=location)).num_models == len(records)
    make_machine("second")
    assert not fetch(replace(_fetch_job(location, records["same"], tmp_path), **asked)).problems
    assert {name for name, record in records.items() if local.is_installed(record)} == expected


def test_a_damaged_archive_is_named_installs_nothing_and_is_replaced(shared, make_machine, location, tmp_path):
    (archive,) = location.glob("*/*.zip")
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    second = make_machine("second")
    report = fetch(_fetch_job(location, shared, tmp_path))
    assert report.num_models == 0
    (problem,) = report.problems
    assert str(location) in problem and "it is removed, because it is damaged" in problem
    assert "\n" not in problem
    assert not (second.folder / local.AOT).exists()
    assert not local.read_records()
    second.compile(shared)
    assert add(_add_job(shared, location=location)).num_models == 1
    assert len(_archives(location)) == 1


def _kill_at(num_bytes: float, job: AddJob | FetchJob, *folders: Path) -> bool:
    """Kills the helper once it has written so many bytes. Returns False if it has ended before."""
    helper = SharingProcess(job)
    while not is_gone(helper._helper.pid) and _written(*folders) < num_bytes:
        time.sleep(0.0005)
    helper.close()
    return bool(helper.result().problems)


def _written(*folders: Path) -> int:
    """The size of all files that still exist."""
    sizes = 0
    for folder in folders:
        for parent, _, names in os.walk(folder):  # unlike rglob, passes over folders that go meanwhile
            for name in names:
                with suppress(OSError):
                    sizes += Path(parent, name).stat().st_size
    return sizes


@pytest.mark.thorough
def test_a_fetching_helper_that_is_killed_leaves_all_or_nothing(make_machine, location, tmp_path, monkeypatch):
    """Also if the cache of kernels is on another file system."""
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
            assert fetch(job).problems == []
            assert machine.has(files)
            shutil.rmtree(kernels)
    assert num_killed > NUM_KILLS // 2


def test_what_killed_helpers_have_left_is_removed(make_machine, location):
    machine = make_machine("first")
    record = _record()
    machine.compile(record, 100)
    local.records_folder().mkdir(parents=True)
    with local.incoming() as new:
        (local.records_folder() / "vcli-old").mkdir()
        add(_add_job(record, location=location))
        assert [*local.records_folder().glob("*/")] == [new]


def test_a_limit_is_kept_by_writers_and_an_archive_above_it_stays(
    shared, make_machine, location, tmp_path, monkeypatch
):
    """Another release can read it."""
    (archive,) = location.glob("*/*.zip")
    monkeypatch.setattr("startup.compiled_models.archive._MOST_MANIFEST_BYTES", 100)
    content = archive.read_bytes()
    second = make_machine("second")
    (problem,) = fetch(_fetch_job(location, shared, tmp_path)).problems
    assert f"{archive} is not used: " in problem
    other = _record(key="cd" * 32)
    second.compile(other)
    (problem,) = add(_add_job(other, location=location)).problems
    assert "more than 100" in problem
    assert (list(location.glob("*/*")), archive.read_bytes()) == ([archive], content)
    assert local.read_records(), "the record is for this machine, too"


def test_an_archive_that_may_not_be_read_disables_no_other(make_machine, location, tmp_path):
    record, other = _record(), _record(key="cd" * 32)
    first = make_machine("first")
    files = {**first.compile(record), **first.compile(other)}
    add(_add_job(record, other, location=location))
    (newest, _) = (location / each.name for each in open_location(str(location)).list())
    newest.chmod(0o666)
    second = make_machine("second")
    report = fetch(_fetch_job(location, record, tmp_path))
    assert report.num_models == 1
    assert [str(newest) in problem for problem in report.problems] == [True]
    newest.chmod(0o644)
    assert fetch(_fetch_job(location, record, tmp_path)).num_models == 1
    assert second.has(files)


@pytest.mark.thorough
def test_what_fits_is_found_among_any_number_of_newer_archives(make_machine, location, tmp_path, monkeypatch):
    """The newer archives are for other flags, for other digests of the same flags, and for edited sources."""
    record = _record(sources={"json.decoder": sha256(Path(json.decoder.__file__).read_bytes()).hexdigest()})
    machine = make_machine("first")
    edited = [replace(record, sources={"json.decoder": str(number)}) for number in range(12)]
    flags = [_record(key=f"{number:064x}", digest=f"{number}", early_digest=f"{number}") for number in range(30)]
    others = [replace(each, key=f"f{each.key[1:]}", start_id="other") for each in flags]
    for each in (record, *edited, *flags, *others):
        machine.compile(each, 10)
        add(_add_job(each, location=location))
    make_machine("second")
    assert fetch(_fetch_job(location, record, tmp_path, record.digest)).num_models == 1
    (found,) = local.read_records()
    assert found.sources == record.sources


@pytest.mark.parametrize("digest", ["", "digest"])
def test_what_was_excluded_is_not_fetched_again_until_it_is_replaced(digest, shared, make_machine, location, tmp_path):
    second = make_machine("second")
    job = _fetch_job(location, shared, tmp_path, digest)
    assert fetch(job).num_models == 1
    (fetched,) = local.read_records()
    local.exclude(fetched)
    local.remove(fetched)
    assert (fetch(job).num_models, fetch(job).problems) == (0, [])
    anew = replace(shared, created_at="2026-11-24T22:00:00+00:00")
    second.compile(anew)
    assert add(_add_job(anew, location=location)).num_models == 1
    make_machine("third")
    assert fetch(job).num_models == 1
    assert [found.created_at for found in local.read_records()] == [anew.created_at]


def test_what_the_location_lacks_is_added_again_without_a_change_of_the_record(shared, location):
    (known,) = local.read_records()
    assert add(_add_job(known, location=location)).num_models == 0
    shutil.rmtree(location)
    assert add(_add_job(known, location=location)).num_models == 1
    assert add(_add_job(replace(known, start_id="other"), location=location)).num_models == 0
    assert local.read_records() == [known]


def test_kernels_of_other_programs_are_not_shared(make_machine):
    """Only kernels that this start or an earlier start has written are shared."""
    record = _record()
    machine = make_machine("first")
    files = machine.compile(record, 10)
    further = machine.folder / "torch_compile_cache/0123456789/rank_0_0/backbone"
    names = {name: number for number, name in enumerate(("triton/old/k.so", "triton/known/k.so", "triton/new/k.so"))}
    for path in (further / "graph.py", further / "cache_key_factors.json", *map(machine.path, names)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name, number in names.items():
        os.utime(machine.path(name), (number, number))
    earlier = _record(key="cd" * 32, files={"triton/known/k.so": (0, "")})
    local.save_record(earlier)
    found = local.files_of(record, (str(further.parents[1]),), since_s=2.0)
    ours = {"triton/known/k.so", "triton/new/k.so", f"vllm/{(further / 'graph.py').relative_to(machine.folder)}"}
    assert found.keys() == files.keys() | ours


@pytest.mark.thorough
def test_a_fetch_ends_when_its_location_does_not_answer(make_machine, tmp_path, monkeypatch):
    monkeypatch.setattr("startup.compiled_models.sharing_process._LEAST_LIMIT_S", 1.0)
    make_machine("first")
    helper = SharingProcess(_fetch_job(tmp_path, _record(), tmp_path))
    os.kill(helper._helper.pid, signal.SIGSTOP)  # as if the volume did not answer
    report = helper.result()
    assert (report.is_late, report.num_models) == (True, 0), report.problems
    (problem,) = report.problems
    assert "is given up after 1 s" in problem
    assert is_gone(helper._helper.pid)
