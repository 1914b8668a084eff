"""Learned modules and scans of packages are kept between starts."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from startup.imports import scan_cache
from startup.imports.learned_imports import import_file_paths
from startup.imports.scan_cache import cached_scans
from tests.startup.imports.test_import_file import put
from tests.support.cli import python_output

pytestmark = pytest.mark.thorough

MODULES = ("parcel", "parcel.inner", "parcel.other")

START = """
import importlib, json, sys
from startup.imports.learned_imports import learn_beside, learned_imports
from startup.imports import finder
with learned_imports():
    for name in sys.argv[1:]:
        importlib.import_module(name)
    served = sorted(name for each in finder._finder.files for name in each.served if name.startswith("parcel"))
learn_beside(())
print(json.dumps({"served": served, "descriptors": len(finder._finder.files)}))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path of new programs, with the cache folder beside it."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    package = tmp_path / "site" / "parcel"
    package.mkdir(parents=True)
    (package.parent / "parcel-1.0.dist-info").mkdir()
    for name in ("__init__.py", "inner.py", "other.py"):
        put(package / name, "VALUE = 1\n")
    return package


def start(*names: str) -> Any:
    """The modules that a new program has imported from the file. The program then completes the file."""
    done = subprocess.run([sys.executable, "-c", START, *names], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    result = json.loads(done.stdout)
    assert result["descriptors"] == 0
    return result["served"]


def printed(program: str) -> str:
    """The output of a new program. Its path is new, because other tests may change this process's path."""
    return python_output(program).strip()


def test_the_second_start_imports_from_the_file_and_does_not_write_it(folder):
    assert start(*MODULES) == []
    before = import_file_paths()[0].stat()
    assert start(*MODULES) == sorted(MODULES)
    assert import_file_paths()[0].stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.smoke
def test_a_start_that_imports_more_adds_to_the_file(folder):
    start("parcel.inner")
    assert start(*MODULES) == ["parcel", "parcel.inner"]
    assert start("parcel.other") == ["parcel", "parcel.other"]
    assert start(*MODULES) == sorted(MODULES)


def test_the_switch_turns_it_off(folder, monkeypatch):
    monkeypatch.setenv("VCLI_LEAVE_OUT", "import file")
    assert start(*MODULES) == []
    assert not import_file_paths()[0].exists()


def test_if_python_may_not_write_bytecode_the_installers_is_used_and_none_is_made(folder, monkeypatch):
    start("parcel.inner")
    import_file_paths()[0].unlink()
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert start(*MODULES) == []
    assert start(*MODULES) == ["parcel", "parcel.inner"]


def test_optimized_bytecode_is_not_mixed_with_other_bytecode(folder, monkeypatch):
    start(*MODULES)
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    assert start(*MODULES) == []


def test_a_baked_file_serves_below_the_users(folder, tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    start("parcel", "parcel.inner")
    (tmp_path / "cache").rename(tmp_path / "baked-cache")
    baked = tmp_path / "baked"
    baked.mkdir()
    (tmp_path / "baked-cache").rename(baked / "cache")
    (baked / "manifest.json").write_text("{}")
    monkeypatch.setenv("VCLI_BAKED", str(baked))
    assert start(*MODULES) == ["parcel", "parcel.inner"]
    assert import_file_paths()[0].is_relative_to(tmp_path / "cache")
    assert start(*MODULES) == sorted(MODULES)


def test_modules_that_other_processes_will_import_are_added_unseen(folder):
    printed("from startup.imports.learned_imports import learn; learn(['parcel', 'parcel.inner'])")
    assert start("parcel.inner") == ["parcel", "parcel.inner"]


DATACLASSES = """
from dataclasses import dataclass, field
@dataclass(frozen=True, order=True)
class Point:
    x: int
    tags: list = field(default_factory=list)
    def norm(self): return abs(self.x)
@dataclass(slots=True)
class Named:
    name: str = "n"
"""

COMPILED = """
import sys
texts = []
def note(event, args):
    if event == "compile" and args[1] in ("<string>", None):
        texts.append(args[0])
sys.addaudithook(note)
from startup.imports.learned_imports import learn, learned_imports
del texts[:]
with learned_imports():
    from parcel.inner import Named, Point
compiled = len(texts)
learn()
assert Point(1, ["a"]) == Point(1, ["a"]) < Point(2) and repr(Point(1)) == "Point(x=1, tags=[])" and Named().name == "n"
try:
    Point(1).x = 2
except AttributeError as err:
    assert str(err) == "cannot assign to field 'x'"
import dataclasses
assert "exec" not in vars(dataclasses)
print(compiled)
"""


@pytest.mark.smoke
def test_methods_of_dataclasses_are_compiled_once(folder):
    put(folder / "inner.py", DATACLASSES)
    assert int(printed(COMPILED)) > 0
    assert int(printed(COMPILED)) == 0


def test_without_the_part_of_the_methods_they_are_compiled(folder):
    put(folder / "inner.py", DATACLASSES)
    num_compiled = printed(COMPILED)
    path = import_file_paths()[0]
    content = path.read_bytes()
    begin = int(
        printed(f"from startup.imports.import_file import *; print(ImportFile({str(path)!r}).index.methods[0])")
    )
    path.write_bytes(content[:begin] + b"?" + content[begin + 1 :])
    assert printed(COMPILED) == num_compiled


def test_notes_of_another_release_are_ignored(folder):
    notes = import_file_paths()[0].with_suffix(".missed")
    notes.parent.mkdir(parents=True)
    notes.write_text('parcel\n"x =\\n"\n')
    start(*MODULES)
    assert start(*MODULES) == sorted(MODULES)


_SCRIPT = """
import importlib.metadata, json, sys
from contextlib import nullcontext
from startup.imports.scan_cache import cached_scans
with cached_scans() if sys.argv[1] == "cached" else nullcontext():
    import transformers, transformers.models
    from transformers.utils import import_utils
# From 5.23 on a function, called for a package whose import name differs from its distribution's.
packages = getattr(import_utils, "_package_distribution_mapping", lambda: import_utils.PACKAGE_DISTRIBUTION_MAPPING)()
scans = import_utils.create_import_structure_from_path.cache_info().misses
print(json.dumps({
    "names": sorted(dir(transformers)),
    "modules": transformers._class_to_module,
    "models": transformers.models._class_to_module,
    "backends": {name: sorted(map(str, b)) for name, b in sorted(transformers._object_missing_backend.items())},
    "distributions": {name: sorted(d) for name, d in sorted(packages.items())},
}, sort_keys=True))
print(json.dumps(scans > 100))
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def _import(cache: Path, mode: str = "cached") -> tuple[dict[str, object], bool]:
    """The state of transformers after its import, and whether it read the sources of its models."""
    # With an unbuffered stream, a signal during a write to a full pipe makes Python lose the rest.
    environment = {"VLLM_CACHE_ROOT": str(cache), "PYTHONUNBUFFERED": ""}
    known, has_scanned = map(json.loads, python_output(_SCRIPT, mode, environment=environment).splitlines())
    return known, has_scanned


def _kept(cache: Path) -> Path:
    """The largest file with a kept value, which is that of the long scan, if this has run."""
    return max((cache / "vllm_cli" / "imports").iterdir(), key=lambda path: path.stat().st_size)


def test_the_second_import_uses_the_cache_until_packages_change(cache, tmp_path):
    known, _ = _import(cache, "plain")
    assert not cache.exists()
    assert _import(cache) == (known, True)
    assert _import(cache) == (known, False)
    file = _kept(cache)
    content = json.loads(file.read_text())
    content["stamps"] += "x"
    file.write_text(json.dumps(content))
    assert _import(cache) == (known, True)
    assert json.loads(file.read_text())["stamps"] != content["stamps"], "it is written again"
    unusable = tmp_path / "a file where the folder should be"
    unusable.touch()
    assert _import(unusable) == (known, True)


@pytest.mark.smoke
def test_a_broken_file_causes_a_new_scan(cache, monkeypatch):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(cache))
    found = {"torch": ["torch"]}
    scan = Mock(return_value=found)
    monkeypatch.setattr(scan_cache, "_find_distributions", scan)
    for content in (None, "{", None):
        if content is not None:
            _kept(cache).write_text(content)
        with cached_scans():
            assert importlib.metadata.packages_distributions() == found
    assert scan.call_count == 2


_RECORDS = {
    "a_package": "a_package/__init__.py,sha256=x,1\na_package/data/x.json,,\na_package-1.dist-info/RECORD,,\n",
    "a_module": "a_module.py,,\n__pycache__/a_module.cpython-311.pyc,,\n../../bin/tool,,\n",
    "compiled": "compiled.cpython-311-x86_64-linux-gnu.so,,\ncompiled_parts/one.so,,\n",
    "odd": '"odd, name/__init__.py",,\nodd.data/scripts/x.py,,\nonly_data/x.txt,,\n',
    "declared": "hidden/__init__.py,,\n",
    "empty": "",
}


def test_packages_are_mapped_to_distributions_as_python_maps_them(tmp_path, monkeypatch):
    for name, record in _RECORDS.items():
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (folder / "RECORD").write_text(record)
        for path in (line.rpartition(",")[0].rpartition(",")[0].strip('"') for line in record.splitlines()):
            if path and not path.startswith(".."):  # since Python 3.12, only files that exist count
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / path).touch()
    (tmp_path / "declared-1.dist-info" / "top_level.txt").write_text("one\ntwo\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = scan_cache._find_distributions()
    assert {*found} > {"a_package", "a_module", "odd, name", "one", "two"}
    assert found == importlib.metadata.packages_distributions()
