"""Versions from folder names equal those in the metadata."""

import subprocess
import sys
from importlib.metadata import version

from startup.timeline.subject import installed_versions

PACKAGES = ("torch", "transformers", "huggingface-hub", "click", "no-such-package")


def test_versions_are_those_of_the_metadata() -> None:
    assert installed_versions(PACKAGES) == {name: version(name) for name in PACKAGES[:-1]}


def test_reading_versions_imports_no_package() -> None:
    code = (
        "import sys\n"
        "from startup.timeline.subject import installed_versions\n"
        "assert installed_versions(['torch'])\n"
        "print({'torch', 'importlib.metadata'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()"
