"""Modules from an import file equal those of Python's own finders. Other modules come from these finders."""

import importlib
import importlib.resources
import importlib.util
import inspect
import os
import pkgutil
import py_compile
import shutil
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import SourceFileLoader
from pathlib import Path
from unittest.mock import Mock

import pytest

from startup.imports import finder
from startup.imports.distributions import distribution_stamps
from startup.imports.import_file import ImportFile, ModuleEntry, UnusableFileError, install, uninstall
from startup.imports.learned_imports import write

NAMES = ("parcel", "parcel.inner", "parcel.sub", "parcel.sub.leaf", "lone")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the import path with an installed package and a module, old enough for the writer."""
    root = tmp_path / "site"
    (root / "parcel" / "sub").mkdir(parents=True)
    sources = {
        "parcel/__init__.py": "from parcel import inner\n",
        "parcel/inner.py": "def fail():\n    raise ValueError('inner')\n",
        "parcel/sub/__init__.py": "",
        "parcel/sub/leaf.py": "VALUE = 1\n",
        "parcel/data.txt": "text",
        "lone.py": "VALUE = 'lone'\n",
    }
    for name, text in sources.items():
        put(root / name, text)
    install_version(root, "1.2.1")
    monkeypatch.syspath_prepend(root)
    yield root
    forget()
    uninstall()


def put(path: Path, text: str, *, age_s: int = 60) -> None:
    path.write_text(text)
    time_s = path.stat().st_mtime - age_s
    os.utime(path, (time_s, time_s))


def install_version(folder: Path, version: str) -> None:
    """Installs a version as an installer does. Sources of all versions have the same size."""
    for old in folder.glob("parcel-*.dist-info"):
        shutil.rmtree(old)
    metadata = folder / f"parcel-{version}.dist-info"
    metadata.mkdir()
    (metadata / "RECORD").write_text("parcel/__init__.py,,\n")
    put(folder / "parcel/sub/leaf.py", f"VALUE = {version[-1]}\n")
    shutil.rmtree(folder / "parcel/sub/__pycache__", ignore_errors=True)
    forget()


def forget() -> None:
    """Removes the test's modules from memory, as in a new program."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("parcel", "lone"):
            del sys.modules[name]
    importlib.invalidate_caches()
    distribution_stamps.cache_clear()


def written(folder: Path) -> Path:
    """An import file of the modules, made of bytecode that Python has stored. The modules are not loaded."""
    for name in NAMES:
        importlib.import_module(name)
    forget()
    path = folder.parent / "imports.code"
    write(path, NAMES)
    return path


def served() -> set[str]:
    return set().union(*(file.served for file in finder._finder.files))


def test_a_module_from_the_file_looks_like_one_from_its_source(folder):
    path = written(folder)
    looks = []
    for is_from_file in (False, True):
        if is_from_file:
            install(path)
        modules = [importlib.import_module(name) for name in NAMES]
        looks.append(
            [
                (
                    m.__file__,
                    m.__cached__,
                    m.__package__,
                    getattr(m, "__path__", None),
                    type(m.__loader__),
                    vars(m.__loader__),
                    m.__spec__ and (m.__spec__.origin, m.__spec__.cached, m.__spec__.has_location),
                    m.__spec__ and m.__spec__.loader is m.__loader__,
                    sorted(vars(m)),
                )
                for m in modules
            ]
        )
        forget()
    assert looks[0] == looks[1]
    assert served() == set(NAMES)


def test_source_resources_tracebacks_and_reload_work(folder):
    install(written(folder))
    parcel = importlib.import_module("parcel")
    leaf = importlib.import_module("parcel.sub.leaf")
    assert type(leaf.__loader__) is SourceFileLoader
    assert inspect.getsource(leaf) == "VALUE = 1\n"
    assert leaf.__loader__.get_data(str(folder / "parcel/data.txt")) == b"text"
    assert importlib.resources.files("parcel").joinpath("data.txt").read_text() == "text"
    assert [module.name for module in pkgutil.iter_modules(parcel.__path__)] == ["inner", "sub"]
    with pytest.raises(ValueError, match="inner") as caught:
        parcel.inner.fail()
    assert "raise ValueError('inner')" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert importlib.reload(leaf).VALUE == 1


def test_a_traceback_through_an_import_names_no_file_of_ours(folder):
    put(folder / "lone.py", "1 / 0\n")
    path = folder.parent / "imports.code"
    write(path, ["lone"])
    install(path)
    with pytest.raises(ZeroDivisionError) as caught:
        importlib.import_module("lone")
    files = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert not [file for file in files if "startup/imports/" in file and "tests/" not in file]


def test_an_edited_module_runs_its_new_code(folder):
    path = written(folder)
    put(folder / "parcel/sub/leaf.py", "VALUE = 2\n", age_s=30)  # the same size, a folder that does not change
    install(path)
    assert importlib.import_module("parcel.sub.leaf").VALUE == 2
    assert served() == set(NAMES) - {"parcel.sub.leaf", "lone"}
    assert "parcel.sub.leaf" in uninstall()


def test_an_earlier_folder_on_the_path_wins(folder, tmp_path, monkeypatch):
    path = written(folder)
    first = tmp_path / "first"
    first.mkdir()
    put(first / "lone.py", "VALUE = 'first'\n")
    monkeypatch.syspath_prepend(first)
    install(path)
    assert importlib.import_module("lone").VALUE == "first"
    assert importlib.import_module("parcel.sub.leaf").VALUE == 1
    assert {"parcel", "parcel.sub.leaf"} <= served()


def _install_more(path: Path, _: pytest.MonkeyPatch) -> None:
    (path.parent / "site/parcel-1.2.1.dist-info/RECORD").write_text("parcel/__init__.py,,\nmore,,\n")
    distribution_stamps.cache_clear()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda _, patch: patch.setattr(sys, "path_hooks", [lambda _: None, *sys.path_hooks]), "import hooks"),
        (_install_more, "distributions"),
        (lambda path, _: path.chmod(0o664), "other users can write to it .mode 0664"),
        (lambda path, _: os.truncate(path, 0), "is incomplete"),
        (lambda path, _: os.truncate(path, path.stat().st_size // 10), "is incomplete"),
        (lambda path, _: os.truncate(path, path.stat().st_size - 1), "is incomplete"),
    ],
    ids=["path hooks", "distributions", "mode", "empty", "a tenth", "cut"],
)
def test_a_file_that_does_not_fit_is_not_used(folder, change, reason, monkeypatch):
    path = written(folder)
    change(path, monkeypatch)
    assert not install(path)
    assert importlib.import_module("parcel.sub.leaf").VALUE == 1
    with pytest.raises(UnusableFileError, match=reason):
        ImportFile(str(path))


@pytest.mark.thorough
def test_each_damaged_byte_is_harmless(folder):
    path = written(folder)
    data = path.read_bytes()
    for position in range(0, len(data), 97):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :])
        install(path)
        assert importlib.import_module("parcel.sub.leaf").VALUE == 1
        assert importlib.import_module("lone").VALUE == "lone"
        forget()
        uninstall()


def normalise(folder: Path) -> None:
    """Sets one time without fractions for all files, as tools for reproducible images do."""
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (1_700_000_000, 1_700_000_000))


@pytest.mark.parametrize("mode", list(py_compile.PycInvalidationMode))
def test_bytecode_of_each_kind_goes_into_the_file_if_python_would_use_it(mode, folder):
    for name in NAMES:
        importlib.import_module(name)
    forget()
    source = folder / "lone.py"
    py_compile.compile(str(source), invalidation_mode=mode, doraise=True)
    path = folder.parent / "imports.code"
    write(path, NAMES)
    put(source, "VALUE = 'NEW!'\n", age_s=30)
    write(path, NAMES)
    install(path)
    is_unchecked = mode is py_compile.PycInvalidationMode.UNCHECKED_HASH
    assert ("lone" if is_unchecked else "NEW!") == importlib.import_module("lone").VALUE
    assert ("lone" in served()) != is_unchecked, "Python itself runs the old code, so it is not in the file"


def test_a_patch_release_with_normalised_times_replaces_the_earlier_one(folder):
    normalise(folder)
    path = written(folder)
    normalise(folder)
    install(path)
    assert importlib.import_module("parcel.sub.leaf").VALUE == 1
    assert "parcel.sub.leaf" in served()
    uninstall()
    install_version(folder, "1.2.2")
    normalise(folder)
    install(path)
    assert importlib.import_module("parcel.sub.leaf").VALUE == 2
    assert served() == set()
    assert "parcel.sub.leaf" in uninstall()  # the file is written again


def test_sources_are_compared_only_where_a_tool_may_have_set_their_times(folder):
    for name, age_s in (("parcel/inner.py", 600), ("lone.py", 62), ("parcel/__init__.py", 60)):
        put(folder / name, (folder / name).read_text(), age_s=age_s)
    os.utime(folder / "parcel/sub/__init__.py", (1_700_000_000, 1_700_000_000))
    os.utime(folder / "parcel/sub/leaf.py", (1_700_000_000, 1_700_000_000))
    file = ImportFile(str(written(folder)))
    file.close()
    compared = {name for name, fields in file.index.modules.items() if ModuleEntry(*fields).source}
    assert compared == {"parcel.inner", "parcel.sub", "parcel.sub.leaf"}


def test_a_module_that_no_installer_has_written_is_left_out(folder):
    shutil.rmtree(folder / "parcel-1.2.1.dist-info")
    install(written(folder))
    assert importlib.import_module("lone").VALUE == "lone"
    assert served() == set()
    assert not set(NAMES) & set(uninstall())  # another file would not serve it either


def test_of_two_writers_one_writes_over_what_a_killed_one_left_and_ignores_the_umask(folder):
    (folder.parent / "imports.code.new").write_bytes(b"x" * 1_000_000)
    before = os.umask(0)
    try:
        path = written(folder)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, [path] * 4, [NAMES] * 4))
    assert install(path)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["imports.code", "site"]


def test_a_link_in_the_place_of_the_new_file_is_not_followed(folder):
    target = folder.parent / "target"
    target.write_text("untouched")
    (folder.parent / "imports.code.new").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        written(folder)
    assert target.read_text() == "untouched"


def test_a_folder_that_cannot_be_written_keeps_the_old_file(folder, monkeypatch):
    path = written(folder)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write(path, NAMES)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["imports.code", "site"]


def test_a_source_that_was_changed_just_now_is_left_out(folder):
    put(folder / "lone.py", "VALUE = 'new'\n", age_s=-3600)  # still new if this machine is slow
    file = ImportFile(str(written(folder)))
    file.close()
    assert "lone" not in file.index.modules


def test_modules_imported_after_uninstall_come_from_their_sources(folder):
    install(written(folder))
    importlib.import_module("parcel")
    spec = importlib.util.find_spec("lone")
    assert served() == {"parcel", "parcel.inner"}
    uninstall()
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.VALUE == "lone"
    assert importlib.import_module("parcel.sub.leaf").VALUE == 1


def test_missing_modules_are_those_that_a_new_file_would_add(folder):
    path = written(folder)
    put(folder / "parcel/late.py", "")
    install(path)
    importlib.import_module("parcel.late")
    importlib.import_module("parcel.sub.leaf")
    assert [name for name in uninstall() if name.startswith("parcel")] == ["parcel.late"]


def test_a_module_in_nested_namespace_packages_is_left_out_where_these_are_not_imported(folder):
    (folder / "parcel_space" / "inner").mkdir(parents=True)
    put(folder / "parcel_space" / "inner" / "leaf.py", "VALUE = 1\n")
    path = folder.parent / "imports.code"
    write(path, ("parcel_space.inner.leaf", "lone"))
    assert set(ImportFile(str(path)).index.modules) == {"lone"}
