"""transformers' exports and the packages' distributions are the same from the cache as from a scan."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from startup.imports.scan_cache import cached_scans

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
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, mode],
        # With an unbuffered stream, a signal during a write to a full pipe makes Python lose the rest.
        env=os.environ | {"VLLM_CACHE_ROOT": str(cache), "PYTHONUNBUFFERED": ""},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    known, has_scanned = map(json.loads, done.stdout.splitlines())
    return known, has_scanned


def _kept(cache: Path) -> Path:
    (file,) = (cache / "vllm_cli" / "imports").iterdir()
    return file


@pytest.mark.thorough
def test_the_second_import_uses_the_cache_and_gives_the_same(cache):
    expected = (_import(cache, "plain")[0], True)
    assert not cache.exists()
    assert _import(cache) == expected
    assert _import(cache) == (expected[0], False)


@pytest.mark.thorough
def test_changed_packages_cause_a_new_scan(cache):
    known, _ = _import(cache)
    file = _kept(cache)
    content = json.loads(file.read_text())
    content["key"][1] += "x"
    file.write_text(json.dumps(content))
    assert _import(cache) == (known, True)
    assert json.loads(file.read_text())["key"] != content["key"]
    assert _import(cache) == (known, False)


@pytest.mark.parametrize("broken", ["{", "[]", '{"key": 1}', ""])
def test_a_broken_file_causes_a_new_scan(broken, cache, monkeypatch):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(cache))
    found = {"torch": ["torch"]}
    scans: list[dict[str, list[str]]] = []

    def scan() -> dict[str, list[str]]:
        scans.append(found)
        return found

    monkeypatch.setattr(importlib.metadata, "packages_distributions", scan)
    for content in (None, broken, None):
        if content is not None:
            _kept(cache).write_text(content)
        with cached_scans():
            assert importlib.metadata.packages_distributions() == found
    assert len(scans) == 2


@pytest.mark.thorough
def test_a_read_only_folder_only_disables_the_cache(cache):
    cache.write_text("a file where the folder should be")
    assert _import(cache) == (_import(cache, "plain")[0], True)
