"""Versions found by folder names are those that the metadata tells."""

import subprocess
import sys
from importlib.metadata import version

from startup.timeline.package_versions import installed_versions

PACKAGES = ("torch", "transformers", "huggingface-hub", "click", "no-such-package")


def test_versions_are_those_of_the_metadata() -> None:
    assert installed_versions(PACKAGES) == {name: version(name) for name in PACKAGES[:-1]}


def test_asking_imports_none_of_them() -> None:
    code = (
        "import sys\n"
        "from startup.timeline.package_versions import installed_versions\n"
        "assert installed_versions(['torch'])\n"
        "print({'torch', 'importlib.metadata'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()"
