"""Real interpreters detect changes of folders, wheels and virtual environments while they run."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psutil import _psutil_linux

pytestmark = pytest.mark.thorough

_ROOT = Path(__file__).parents[3]
_TEMPLATE = """
import sys
sys.path.append({root!r})
import importlib
from startup.standby.import_state import InstalledFiles
files = InstalledFiles()
for name in {modules!r}:
    importlib.import_module(name)
files.record_loaded()
print("ready", flush=True)
for line in sys.stdin:
    print(files.find_change() or "none", flush=True)
"""


@contextmanager
def running(
    *modules: str, path: Path | None = None, python: Path | str = sys.executable
) -> Iterator[Callable[[], str]]:
    """Runs a process that has imported modules. Yields a function that names a change since."""
    code = _TEMPLATE.format(root=str(_ROOT), modules=modules)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    with subprocess.Popen(
        [python, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline().startswith("ready")

        def find_change() -> str:
            print(file=process.stdin, flush=True)
            return process.stdout.readline().strip()

        yield find_change
        process.stdin.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder on the path with a package and a module, older than any template."""
    folder = tmp_path / "sources"
    (folder / "pack" / "inner").mkdir(parents=True)
    for name in ("pack/__init__.py", "pack/inner/__init__.py", "pack/inner/part.py", "single.py"):
        (folder / name).write_text("VALUE = 1\n")
    return folder


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a virtual environment with one package. `e2e/test_warm_start.py` upgrades one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    package = site_of(python) / "smallpack-1.0.dist-info"
    package.mkdir()
    (package / "RECORD").touch()
    return python


def site_of(python: Path) -> Path:
    return next(python.parents[1].glob("lib/python*/site-packages"))


@pytest.mark.parametrize("text", ["VALUE = 2\n", None], ids=["edited", "removed"])
def test_another_source_is_a_change(folder, text):
    source = folder / "pack" / "inner" / "part.py"
    with running("pack.inner.part", "single", path=folder) as find_change:
        source.unlink() if text is None else source.write_text(text)
        assert "part.py was changed" in find_change()


def test_a_source_edited_during_the_imports_is_a_change(folder):
    (folder / "edits.py").write_text(
        "import pathlib, pack.inner.part as part\npathlib.Path(part.__file__).write_text('VALUE = 2\\n')\n"
    )
    with running("edits", path=folder) as find_change:
        assert "part.py was changed" in find_change()


def test_a_module_that_the_imports_generate_is_no_change(folder, tmp_path):
    """transformers generates modules of a model's own code. They must not make a new template stale."""
    (folder / "generates.py").write_text(
        "import pathlib, sys\n"
        f"cache = pathlib.Path({str(tmp_path / 'modules')!r})\n"
        "cache.mkdir()\n"
        "(cache / 'generated.py').touch()\n"
        "sys.path.append(str(cache))\n"
        "import generated\n"
    )
    with running("generates", path=folder) as find_change:
        assert find_change() == "none"
        (tmp_path / "modules" / "generated.py").write_text("VALUE = 1\n")
        assert "generated.py was changed" in find_change()


def test_bytecode_is_no_change(folder):
    with running("pack.inner.part", path=folder) as find_change:
        for package in (folder, folder / "pack", folder / "pack" / "inner"):
            shutil.rmtree(package / "__pycache__", ignore_errors=True)
        assert find_change() == "none"
        subprocess.run([sys.executable, "-m", "compileall", "-q", folder], check=True)
        assert find_change() == "none"


def test_a_replaced_library_is_a_change(folder):
    library = Path(shutil.copy2(_psutil_linux.__file__, folder / "_copied.so"))  # the standard library may be built in
    (folder / "loads.py").write_text(f"import ctypes\nctypes.CDLL({str(library)!r})\n")
    with running("loads", path=folder) as find_change:
        assert find_change() == "none"
        replaced = library.with_suffix(".new")
        shutil.copy2(library, replaced)
        replaced.rename(library)
        assert find_change() == f"{library} was changed"


def test_a_package_that_only_a_finder_finds_is_checked(folder, tmp_path):
    """Editable installations add such finders."""
    package = tmp_path / "elsewhere" / "editable"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (folder / "finds.py").write_text(
        "import importlib.util, sys\n"
        "class Finder:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'editable':\n"
        f"            return importlib.util.spec_from_file_location(name, {str(package / '__init__.py')!r})\n"
        "sys.meta_path.append(Finder)\n"
        "import editable\n"
    )
    with running("finds", path=folder) as find_change:
        assert find_change() == "none"
        (package / "__init__.py").write_text("VALUE = 1\n")
        assert find_change() == f"{package}/__init__.py was changed"


def test_another_path_file_or_interpreter_is_a_change(python, tmp_path):
    path_file = site_of(python) / "__editable__.other-1.0.pth"
    with running(python=python) as find_change:
        path_file.write_text(str(tmp_path))
        assert find_change() == f"{path_file} was changed"
    with running(python=python) as find_change:
        copy = tmp_path / "copied-python"
        shutil.copy2(python.resolve(), copy)
        python.unlink()
        python.symlink_to(copy)
        assert "python was changed" in find_change()
