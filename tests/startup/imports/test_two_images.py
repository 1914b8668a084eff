"""Two container images of one version, whose files have one time and equal sizes, share a cache folder.

Tools for reproducible images set such times (SOURCE_DATE_EPOCH, Bazel, `tar --mtime`). Each image runs its
own code, and other containers of an image use what the first has learned.
"""

import json
import os
import shutil
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest

from base.machine.file_stamps import are_unchanged, store_stamps, written_times
from tests.support.cli import python_output

pytestmark = pytest.mark.thorough

_SET_S: Final = 1_700_000_000

_PROGRAM: Final = """
import importlib.metadata, json, sys
from pathlib import Path
from startup.imports import finder
from startup.imports.distributions import contents_of
from startup.imports.learned_imports import installation, learn_beside, learned_imports
from startup.imports.scan_cache import cached_scans
from startup.storage.bytecode import keep_bytecode
from startup.storage.caches import CachedValue, digest

package = Path(sys.argv[1], "parcel")
notice = keep_bytecode(package)
with learned_imports():
    import parcel.inner
    served = sorted(name for file in finder._finder.files for name in file.served if name.startswith("parcel"))
kept = CachedValue("things", "limit")
if (value := kept.read(int)) is None:
    source = package / "inner.py"
    kept.write(value := int(source.read_text().split()[-1]), [str(source)])
with cached_scans():
    packages = importlib.metadata.packages_distributions()
learn_beside(())
print(json.dumps({
    "limits": [parcel.inner.LIMIT, value], "served": served, "cached": parcel.inner.__cached__,
    "family": digest(installation()), "contents": digest(contents_of(["parcel"])),
    "packages": sorted({"parcel", "box"} & packages.keys()),
}))
"""


class Images:
    """Images that take each other's place in one folder, and the cache folder that they share."""

    def __init__(self, folder: Path) -> None:
        self.site = folder / "site"
        self.cache = folder / "cache"
        self._others = folder / "images"

    def build(self, name: str, limit: int, *, recorded: int | None = None, more: str = "") -> None:
        """Builds an image whose files have one time. `recorded`: the limit in the file that was installed."""
        site = self._others / name
        sources = {"parcel/__init__.py": "", "parcel/inner.py": f"LIMIT = {limit}\n", "parcel/same.py": ""}
        for path, text in sources.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(text)
        installed = {**sources, "parcel/inner.py": f"LIMIT = {recorded or limit}\n"}
        metadata = site / "parcel-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Name: parcel\n")
        lines = [f"{path},sha256={_hash(text)},{len(text)}\n" for path, text in installed.items()]
        (metadata / "RECORD").write_text("".join((*lines, *([f"{more}/__init__.py,,\n"] if more else ()))))
        self.set_times(site)

    def set_times(self, folder: Path) -> None:
        for path in (*folder.rglob("*"), folder):
            os.utime(path, (_SET_S, _SET_S))

    def run(self, name: str, **variables: str) -> Any:
        """Runs the program in a new container of an image: same files, but other inode numbers and ctimes."""
        shutil.rmtree(self.site, ignore_errors=True)
        shutil.copytree(self._others / name, self.site)
        self.set_times(self.site)
        environment = {"VLLM_CACHE_ROOT": str(self.cache), "PYTHONPATH": str(self.site), **variables}
        return json.loads(python_output(_PROGRAM, self.site, environment=environment))


def _hash(text: str) -> str:
    return urlsafe_b64encode(sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    images = Images(tmp_path)
    images.build("first", 100)
    images.build("edited", 999, recorded=100)
    images.build("installed", 555, more="box")
    return images


_ALL: Final = ["parcel", "parcel.inner"]


@pytest.mark.smoke
def test_each_image_runs_its_own_code(images):
    assert images.run("first")["served"] == []
    first = images.run("first")
    assert (first["limits"], first["served"], first["packages"]) == ([100, 100], _ALL, ["parcel"])
    edited = images.run("edited")
    assert (edited["limits"], edited["served"]) == ([999, 999], ["parcel"])
    assert edited["family"] == first["family"], "no list of files differs, so contents are compared one by one"
    assert images.run("first")["limits"] == [100, 100]
    installed = images.run("installed")
    assert (installed["limits"], installed["served"], installed["packages"]) == ([555, 555], [], ["box", "parcel"])
    assert first["family"] != installed["family"]
    assert first["contents"] != installed["contents"]


def test_a_baked_file_of_another_image_gives_no_old_code(images, tmp_path):
    images.run("first")
    tmp_path.chmod(0o755)
    baked = tmp_path / "baked"
    baked.mkdir()
    (baked / "manifest.json").write_text("{}")
    images.cache.rename(baked / "cache")
    for image, limit, served in (("first", 100, _ALL), ("edited", 999, ["parcel"]), ("installed", 555, [])):
        shutil.rmtree(images.cache, ignore_errors=True)
        found = images.run(image, VCLI_BAKED=str(baked))
        assert (found["limits"], found["served"]) == ([limit, limit], served)


def test_kept_bytecode_is_used_for_one_content_only(images):
    variables = {"PYTHONDONTWRITEBYTECODE": "1", "VCLI_LEAVE_OUT": "import file"}
    first = images.run("first", **variables)
    file = Path(first["cached"])
    assert file.is_relative_to(images.cache)
    before = file.stat()
    assert images.run("first", **variables) == first
    assert file.stat().st_mtime_ns == before.st_mtime_ns, "another container of the image has used it"
    assert images.run("edited", **variables)["limits"] == [999, 999]
    assert images.run("first", **variables)["limits"] == [100, 100]
    assert images.run("installed", **variables)["limits"] == [555, 555]


@pytest.fixture
def source(tmp_path: Path) -> Callable[[str], list[str]]:
    """Writes a small file, a large one and a folder. All have a set time, and sizes that stay the same."""

    def write(text: str) -> list[str]:
        folder = tmp_path / "sources"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "names").mkdir(parents=True)
        (folder / "names" / text).touch()
        (folder / "small").write_text(text)
        (folder / "large").write_bytes(bytes(5 << 20) + text.encode())
        paths = [folder / name for name in ("small", "large", "names", "missing")]
        for path in paths[:-1]:
            os.utime(path, (_SET_S, _SET_S))
        return list(map(str, paths))

    return write


@pytest.mark.parametrize("number", range(3), ids=["small", "large", "folder"])
def test_a_stored_stamp_with_a_set_time_holds_for_one_content(number, source):
    stamps = store_stamps([source("old")[number]])
    source("old")
    assert are_unchanged(stamps), "another container"
    source("new")
    assert not are_unchanged(stamps)


def test_a_time_is_proof_only_if_another_file_was_written_at_another_second_close_to_it(source):
    assert written_times([_SET_S, _SET_S, _SET_S + 3600]) == frozenset()
    assert written_times([_SET_S, _SET_S + 2, _SET_S + 3600]) == {_SET_S, _SET_S + 2}
    assert written_times([-1, 0, 0]) == frozenset(), "a missing file has no time"
    paths = source("old")
    assert [bool(content) for _, _, content in store_stamps(paths).values()] == [True, True, True, False]
    os.utime(paths[0], (_SET_S + 2, _SET_S + 2))
    assert not any(content for _, _, content in store_stamps(paths).values())
