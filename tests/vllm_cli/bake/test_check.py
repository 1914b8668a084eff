"""`bake --check` names each part that does not apply any more, with the reason."""

import json
import os
import py_compile
import re
from dataclasses import replace
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from startup.caches.baked import BYTECODE, CACHE, PAGES
from startup.caches.folders import OWN
from startup.caches.manifest import Hardware, Interpreter, Manifest, stamps_of
from startup.imports.scan_cache import scan_key
from startup.prefetch.pages import whole_file, write_pages
from startup.timeline.subject import installed_versions
from tests.startup.caches.conftest import baked, write_manifest  # noqa: F401 - a fixture
from vllm_cli.bake.check import check_baked
from vllm_cli.main import main


@pytest.fixture
def whole(baked: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A folder with every part, which applies here."""
    cache, model = baked / CACHE, tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    for name in (f"{OWN}/preload/a.json", "modelinfos/a.json", "torch_compile_cache/a/graph", f"{OWN}/history.jsonl"):
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text("{}")
    (cache / OWN / "imports").mkdir()
    (cache / OWN / "imports" / "a.json").write_text(json.dumps({"key": scan_key(), "entries": {}}))
    source = tmp_path / "module.py"
    source.write_text("x = 1")
    compiled = Path(f"{baked / BYTECODE}{cache_from_source(str(source)).replace('__pycache__/', '')}")
    py_compile.compile(str(source), str(compiled))
    write_pages(str(baked / PAGES), [whole_file(str(source))])
    manifest = write_manifest(baked)
    versions = installed_versions(("torch", "transformers"))
    replace(manifest, model=str(model), model_files=stamps_of(model), packages=versions).save(baked)
    return baked


def _reasons(folder: Path) -> dict[str, str]:
    return {part.name: part.reason for part in check_baked(folder).parts if not part.applies}


def _change(folder: Path, **fields: object) -> None:
    replace(Manifest.read(folder), **fields).save(folder)  # type: ignore[arg-type]


def test_an_unchanged_machine_uses_every_part(whole: Path) -> None:
    result = check_baked(whole)
    assert result.is_whole
    assert [part.name for part in result.parts] == [
        "permissions", "model", "start history", "preload profile", "package scan", "model inspection",
        "compile caches", "bytecode", "pages to prefetch",
    ]  # fmt: skip


def test_an_upgrade_is_named(whole: Path) -> None:
    _change(whole, packages={**installed_versions(("transformers",)), "torch": "2.0"})
    reasons = _reasons(whole)
    assert set(reasons) == {"start history", "preload profile", "model inspection", "compile caches"}
    assert reasons["compile caches"].startswith("torch was 2.0, is ")


def test_another_interpreter_is_named(whole: Path) -> None:
    _change(whole, interpreter=Interpreter("CPython 3.1", "/usr"))
    assert _reasons(whole)["bytecode"].startswith("baked for CPython 3.1 in /usr, this is ")


def test_other_hardware_concerns_only_compiled_code(whole: Path) -> None:
    here = Hardware.present()
    _change(whole, hardware=Hardware("x86_64 other", here.gpus))
    assert _reasons(whole) == {"compile caches": "the processor has other instruction sets"}
    _change(whole, hardware=Hardware(here.cpu, ("NVIDIA H100",)))
    assert _reasons(whole)["compile caches"].startswith("the GPUs were NVIDIA H100, are ")


def test_a_changed_model_is_named(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "model" / "new.json").touch()
    assert _reasons(whole) == {"model": "new.json is new"}


def test_times_count_in_whole_seconds(whole: Path, tmp_path: Path) -> None:
    """The layers of a container image keep no fractions."""
    for file in (tmp_path / "model" / "config.json", tmp_path / "module.py"):
        os.utime(file, (int(file.stat().st_mtime), int(file.stat().st_mtime)))
    assert check_baked(whole).is_whole


def test_changed_sources_and_packages_are_named(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("xyz = 1")
    (scans,) = (whole / CACHE / OWN / "imports").iterdir()
    scans.write_text(json.dumps({"key": [], "entries": {}}))
    assert _reasons(whole) == {
        "pages to prefetch": "1 of 1 files are gone or have other sizes",
        "package scan": "a package was installed or removed since",
        "bytecode": "1 of 1 modules have changed, such as module.cpython-" + os.sys.version[:4].replace(".", ""),  # type: ignore[attr-defined]
    }


def test_a_file_that_others_can_write_to_is_named(whole: Path) -> None:
    (whole / CACHE / OWN / "history.jsonl").chmod(0o666)
    assert "history.jsonl" in _reasons(whole)["permissions"]


def test_the_command_reports_by_exit_code(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bake", "--check"]) == 0
    assert re.search(r"preload profile +1 files +2 bytes +applies", capsys.readouterr().out)
    _change(whole, packages={"torch": "2.0"})
    assert main(["bake", "--check", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert not result["applies"]
    assert {part["name"] for part in result["parts"] if not part["applies"]} >= {"preload profile"}
    assert main(["bake", "--check", "model"]) == 2
    assert main(["bake", "--check", "--output", str(whole / "none")]) == 2
    (whole / "manifest.json").write_text('{"format": 99}')
    assert main(["bake", "--check"]) == 2
    assert "its format is 99, this version reads" in capsys.readouterr().err
