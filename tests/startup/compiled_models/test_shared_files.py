"""Machines share kernels, and what starts learn, by a location, whatever their models."""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from startup.compiled_models.archive import MANIFEST
from startup.compiled_models.record import FileFacts, Hardware, SharedFiles, kernel_family, start_family
from startup.compiled_models.sharing import add, fetch
from startup.compiled_models.sharing_process import LEARNED_FETCHED, AddJob, FetchJob, LearnedFiles, SharingReport
from startup.storage.caches import HIDDEN
from tests.startup.compiled_models.conftest import FILES, facts, zipped
from tests.startup.compiled_models.test_sharing import Machine

_VERSIONS: Final = {"vllm": "0.33.0", "triton": "3.7.0"}
_FAMILIES: Final = kernel_family(_VERSIONS, Hardware.present(), ("9.0",))
_LEARNED: Final = LearnedFiles(start_family(_VERSIONS, "python"), "0123456789abcdef", is_known=False, is_first=True)
_PROFILE: Final = "vllm/vllm_cli/starts/0123456789abcdef.json"
_IMPORTS: Final = "vllm/vllm_cli/imports/0123456789abcdef.code"
_KERNEL: Final = ("triton/KEY/kernel.cubin", "triton/KEY/__grp__kernel.json")
_OLD_S: Final = 1_000_000_000.0


@pytest.fixture
def make_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Machine]:
    return lambda name: Machine(tmp_path / name, monkeypatch).use()


@pytest.fixture
def location(tmp_path: Path) -> Path:
    return tmp_path / "shared"


def _write(machine: Machine, *names: str, age_s: float = 0.0) -> dict[str, bytes]:
    files = {name: name.encode() * 100 for name in names}
    for name, content in files.items():
        path = machine.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name.startswith("__grp__"):
            content = files[name] = json.dumps(
                {"child_paths": {"kernel.cubin": str(path.parent / "kernel.cubin")}}
            ).encode()
        path.write_bytes(content)
        os.utime(path, (time.time() - age_s,) * 2)
    return files


def _add(location: Path, began_s: float = _OLD_S, learned: LearnedFiles | None = None) -> SharingReport:
    job = AddJob(records=(), location=str(location), began_s=began_s, kernel_families=_FAMILIES, learned=learned)
    return add(job)


def _fetch(location: Path, folder: Path, learned: LearnedFiles | None = None, *events: object) -> SharingReport:
    job = FetchJob(
        locations=(str(location),), model="", versions=_VERSIONS, start_id="", found_folder=str(folder / "found"),
        learned=learned, kernel_families=_FAMILIES, is_for_model=False,
    )  # fmt: skip
    sent: list[object] = []
    report = fetch(job, sent.append)
    assert sent == [LEARNED_FETCHED]
    return report


def test_the_kernels_of_all_models_reach_a_new_machine(make_machine, location, tmp_path):
    """Each start adds what it has compiled itself. Triton's lists of files name paths of the new machine."""
    first = make_machine("first")
    _write(first, *_KERNEL, "triton/KEY/tmp.pid_1_x/kernel.cubin", "triton/KEY/kernel.lock")
    others = _write(first, "vllm/deep_gemm/x/kernel.so")
    assert _add(location).num_others == 2
    second = make_machine("second")
    of_second = _write(second, "triton/OTHER/kernel.cubin")
    assert _add(location).num_others == 1
    assert _add(location).num_others == 0, "the location has them"
    third = make_machine("third")
    assert _fetch(location, tmp_path).num_kernel_archives == 3
    assert third.has({**others, **of_second})
    listed = json.loads(third.path(_KERNEL[1]).read_bytes())["child_paths"]
    assert {path.name for path in third.path("triton/KEY").iterdir()} == {"kernel.cubin", "__grp__kernel.json"}
    assert listed == {"kernel.cubin": str(third.path(_KERNEL[0]))}
    assert _fetch(location, tmp_path).num_kernel_archives == 0
    assert _add(location, began_s=time.time() + 60).archives == [], "it has compiled nothing itself"


def test_kernels_for_another_gpu_or_version_are_not_fetched(make_machine, location, tmp_path, monkeypatch):
    _write(make_machine("first"), *_KERNEL)
    _add(location)
    make_machine("second")
    for versions, architectures in ((_VERSIONS, ("10.0",)), ({**_VERSIONS, "triton": "3.8.0"}, ("9.0",))):
        monkeypatch.setattr(f"{__name__}._FAMILIES", kernel_family(versions, Hardware.present(), architectures))
        assert _fetch(location, tmp_path).num_kernel_archives == 0


def test_a_new_machine_gets_what_a_start_of_its_kind_has_learned_or_else_of_another_kind(
    make_machine, location, tmp_path
):
    files = [f"vllm/vllm_cli/{folder}/0123456789abcdef.json" for folder in ("graph-memory", "triton-key")]
    learned = _write(make_machine("first"), _PROFILE, _IMPORTS, "vllm/modelinfos/vllm-models-llama.json", *files)
    others = ("history/0123456789abcdef.json", "standby/socket", "late-captures/0123456789abcdef.json")
    _write(
        make_machine("first"),
        *(f"vllm/vllm_cli/{name}" for name in (*others, f"graph-memory/0123456789abcdef{HIDDEN}")),
    )
    of_baked_image = _LEARNED._replace(is_whole=False, has_news=True)
    assert _add(location, learned=of_baked_image).num_others == 0, "the rest is in the image"
    assert _add(location, learned=_LEARNED).num_others == 1
    assert _add(location, learned=_LEARNED).num_others == 0, "nothing new"
    for kind in ("0123456789abcdef", "fedcba9876543210"):
        machine = make_machine(kind)
        assert _fetch(location, tmp_path, _LEARNED._replace(kind=kind)).num_learned == 1
        assert machine.has(learned)
        found = {path.relative_to(machine.folder).as_posix() for path in (machine.folder / "vllm_cli").rglob("*.*")}
        assert {f"vllm/{name}" for name in found} == {name for name in learned if "/vllm_cli/" in name}


def test_news_replace_older_archives_of_their_kind(make_machine, location):
    machine = make_machine("first")
    _write(machine, _PROFILE)
    for number in range(4):
        _write(machine, f"vllm/vllm_cli/imports/{number:016x}.json")
        assert _add(location, learned=_LEARNED._replace(has_news=True)).problems == []
    assert len(list(location.glob("starts-*/*.zip"))) == 2


class Foreign(NamedTuple):
    """An archive that others may have written: its files, what its record says, and the reported problem."""

    files: Mapping[str, bytes]
    problem: str = ""
    facts: Mapping[str, FileFacts] | None = None
    family: str = _LEARNED.family


_CONTENT: Final = {_PROFILE: b"{}"}
FOREIGN: Final = {
    "another folder of vllm-cli": Foreign({"vllm/vllm_cli/standby/0123456789abcdef.json": b"x"}),
    "a folder of vLLM": Foreign({"vllm/modelinfos/a/b.json": b"x"}),
    "a name that is no hash": Foreign({"vllm/vllm_cli/starts/latest.json": b"x"}),
    "another cache": Foreign({"home/.bashrc": b"x"}),
    "outside": Foreign({"vllm/vllm_cli/starts/../../../x.json": b"x"}, "is not an allowed name"),
    "absolute": Foreign({"/etc/cron.d/x": b"x"}, "is not an allowed name"),
    "another record": Foreign(_CONTENT, "its record belongs to another archive", family="starts-other"),
    "other content": Foreign(_CONTENT, "SHA-256", facts=facts({_PROFILE: b"[]"})),
    "another size": Foreign(_CONTENT, "", facts={_PROFILE: FileFacts(1 << 40, "0" * 64)}),
    "a compiled model": Foreign(FILES, "the record of a compiled model is not valid"),
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
def test_nothing_else_is_installed(foreign, make_machine, location, tmp_path):
    archive = location / _LEARNED.family / f"{_LEARNED.kind}-1.zip"
    archive.parent.mkdir(parents=True)
    told = facts(foreign.files) if foreign.facts is None else foreign.facts
    record = SharedFiles(family=foreign.family, name=f"{_LEARNED.kind}-1", created_at="", files=told)
    manifest = asdict(record) if foreign.files is not FILES else {"key": "ab"}
    archive.write_bytes(zipped({**foreign.files, MANIFEST: json.dumps(manifest).encode()}))
    machine = make_machine("machine")
    report = _fetch(location, tmp_path, _LEARNED)
    assert foreign.problem in "\n".join(report.problems)
    written = [path for path in machine.folder.rglob("*") if path.is_file()]
    assert written == []
