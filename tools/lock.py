"""Writes constraints.txt from pyproject.toml, with the hashes of all files.

Changes a version only if it must, or if ARGS for uv name it. Hashes are those of pip's `index-url`.

make lock [ARGS="--upgrade-package torch==2.14.0"]
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tools.install import LOCK, find_uv, read_pip_settings, translate, without_hashes

_HEADER: Final = """\
# Written by `make lock`: all that `make` installs, with Python 3.11 to 3.14, in the versions that the tests and the
# figures were made with, and the hashes of all their files. pyproject.toml keeps ranges, for those who install the
# package beside others. `python -m tools.install` reads this file.
"""
_TOOLS: Final = "uv\ncyclonedx-bom\npip-audit\n"
"""Packages that `make` installs besides the project and its extras."""
_OPTIONS: Final = (
    *("--quiet", "--universal", "--python-version=3.11", "--all-extras", "--no-header", "--no-annotate"),
    "--generate-hashes",
)
_OF_THIS_MACHINE: Final = ("find-links", "constraint", "extra-index-url")
"""Settings of pip that could change the chosen versions."""


def main(arguments: list[str]) -> int:
    """Writes the file. Returns the exit code of uv."""
    if (uv := find_uv()) is None:
        return 1
    settings = {key: value for key, value in read_pip_settings().items() if key not in _OF_THIS_MACHINE}
    variables, _ = translate(settings)
    with tempfile.NamedTemporaryFile("w+", suffix=".txt") as file:
        file.write(without_hashes())  # uv would keep the hashes of versions that it keeps
        file.flush()
        command = [uv, "pip", "compile", *_OPTIONS, "--output-file", file.name, *arguments, "pyproject.toml", "-"]
        done = subprocess.run(command, input=_TOOLS, text=True, env=variables | dict(os.environ))
        if done.returncode == 0:
            LOCK.write_text(_HEADER + Path(file.name).read_text())  # uv may have replaced the file
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
