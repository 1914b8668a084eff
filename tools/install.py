"""Installs packages into the environment of this interpreter by uv, or by pip if there is no uv.

    .venv/bin/python -m tools.install [--compile-bytecode] -c constraints.txt -e '.[embedded]'

uv is taken from PATH. If PATH has none, the version in constraints.txt is installed. The user's settings of
pip also apply to uv. If uv lacks such a setting, or if uv fails, pip installs the same packages. pip always
compiles bytecode. This module imports only the standard library, because nothing else is installed yet.
"""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

PIP: Final = (sys.executable, "-m", "pip", "--disable-pip-version-check")
_COMPILE: Final = "--compile-bytecode"
_LISTS: Final = {"extra-index-url": "UV_EXTRA_INDEX_URL", "trusted-host": "UV_INSECURE_HOST"}
_VALUES: Final = {
    "index-url": ("UV_INDEX_URL",),
    "cert": ("SSL_CERT_FILE",),
    "client-cert": ("SSL_CLIENT_CERT",),
    "proxy": ("HTTPS_PROXY", "HTTP_PROXY"),
    "timeout": ("UV_HTTP_TIMEOUT",),
    "default-timeout": ("UV_HTTP_TIMEOUT",),
    "no-index": ("UV_NO_INDEX",),
    "no-cache-dir": ("UV_NO_CACHE",),
}
_OF_PIP_ONLY: Final = {
    *("cache-dir", "disable-pip-version-check", "log", "no-color", "no-input", "progress-bar", "quiet", "verbose"),
    *("break-system-packages", "require-virtualenv", "root-user-action", "no-warn-script-location", "exists-action"),
    *("compile", "no-compile", "prefer-binary", "retries", "upgrade", "upgrade-strategy", "use-pep517"),
}
"""Settings of pip that do not change which packages are installed."""


class UnknownSettingError(Exception):
    """uv has no counterpart of a setting of pip. The text names the setting."""


def main(words: list[str]) -> int:
    """Installs the packages that the words name. Returns the exit code of uv or pip."""
    if (uv := find_uv()) is not None:
        try:
            variables, constraints = translate(read_pip_settings())
        except UnknownSettingError as err:
            print(f"Installing with pip: uv has no setting for {err}.", flush=True)
        else:
            command = [uv, "pip", "install", "--python", sys.executable, *constraints, *words]
            if subprocess.run(command, env=variables | dict(os.environ)).returncode == 0:
                return 0
            print("uv has failed; installing with pip.", file=sys.stderr, flush=True)
    return subprocess.run([*PIP, "install", *(word for word in words if word != _COMPILE)]).returncode


def find_uv() -> str | None:
    """The uv on PATH or in this environment. If there is none, installs it here. None if that fails."""
    own = Path(sys.executable).with_name("uv")
    if (found := shutil.which("uv")) is not None:
        return found
    if not own.exists():
        words = ["--quiet", "--only-binary", ":all:", "-c", "constraints.txt", "uv"]
        if subprocess.run([*PIP, "install", *words], stderr=subprocess.DEVNULL).returncode != 0:
            print("Installing with pip: uv is not on PATH and could not be installed.", flush=True)
            return None
    return str(own)


def read_pip_settings() -> dict[str, str]:
    """The settings for `pip install` in pip's files and variables."""
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=True).stdout
    places: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        place, _, key = name.partition(".")
        if place in places and ast.literal_eval(value):
            places[place][key] = ast.literal_eval(value)
    return {key: value for place in places.values() for key, value in place.items()}


def translate(settings: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Translates pip's settings into variables and words for uv. Raises UnknownSettingError."""
    variables: dict[str, str] = {}
    constraints: list[str] = []
    for key, value in settings.items():
        if key in _LISTS:
            variables[_LISTS[key]] = " ".join(value.split())
        elif key in _VALUES:
            variables |= dict.fromkeys(_VALUES[key], value)
        elif key == "find-links":
            variables["UV_FIND_LINKS"] = ",".join(value.split())
        elif key == "constraint":
            constraints += [word for path in value.split() for word in ("-c", path)]
        elif key not in _OF_PIP_ONLY:
            raise UnknownSettingError(key)
    if "extra-index-url" in settings:  # like pip, take the best version of all indexes
        variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return variables, constraints


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
