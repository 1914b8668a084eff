"""Writes constraints.txt from pyproject.toml. Changes a version only if it must, or if ARGS for uv name it.

make lock [ARGS="--upgrade-package torch==2.14.0"]
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tools.install import find_uv, read_pip_settings, translate

CONSTRAINTS: Final = Path("constraints.txt")
_HEADER: Final = """\
# Written by `make lock`: all that `make` installs, with Python 3.11 to 3.14, in the versions that the tests and the
# figures were made with. pyproject.toml keeps ranges, for those who install the package beside others.
"""
_TOOLS: Final = "uv\ncyclonedx-bom\npip-audit\n"
"""Packages that `make` installs besides the project and its extras."""
_OPTIONS: Final = ("--quiet", "--universal", "--python-version=3.11", "--all-extras", "--no-header", "--no-annotate")
_OF_THIS_MACHINE: Final = ("find-links", "constraint", "extra-index-url")
"""Settings of pip that could change the chosen versions."""


def main(words: list[str]) -> int:
    """Writes the file. Returns the exit code of uv."""
    if (uv := find_uv()) is None:
        return 1
    settings = {key: value for key, value in read_pip_settings().items() if key not in _OF_THIS_MACHINE}
    variables, _ = translate(settings)
    command = [uv, "pip", "compile", *_OPTIONS, "--output-file", str(CONSTRAINTS), *words, "pyproject.toml", "-"]
    done = subprocess.run(command, input=_TOOLS, text=True, env=variables | dict(os.environ))
    if done.returncode == 0:
        CONSTRAINTS.write_text(_HEADER + CONSTRAINTS.read_text())
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
