"""Installs packages of constraints.txt into the environment of this interpreter, and checks their hashes.

    .venv/bin/python -m tools.install [--compile-bytecode] [--no-deps] [-e] '.[embedded]'
    .venv/bin/python -m tools.install pip-audit

uv is taken from PATH, and installed if PATH has none. The user's settings of pip also apply to uv. If uv
lacks such a setting, or if uv fails, pip installs the same packages, in the version of constraints.txt,
because older ones ignore hashes there. UV_NO_VERIFY_HASHES=1 skips the check, for an index that builds
packages itself and so has other hashes. This module imports only the standard library, because nothing else
is installed yet.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

PIP: Final = (sys.executable, "-m", "pip", "--disable-pip-version-check")
LOCK: Final = Path("constraints.txt")
_COMPILE: Final = "--compile-bytecode"
_BUILT_FOR_EACH_INDEX: Final = ("torch", "triton")
"""PyTorch's indexes for CPU, CUDA and ROCm have builds of their own, which are not in PyPI."""
_HINT: Final = "If hashes do not match because your index builds packages itself: UV_NO_VERIFY_HASHES=1 (SECURITY.md)."
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
        settings = read_pip_settings()
        try:
            variables, constraints = translate(settings)
        except UnknownSettingError as err:
            print(f"Installing with pip: uv has no setting for {err}.", flush=True)
        else:
            with _file(_lock(_BUILT_FOR_EACH_INDEX if _has_own_index(settings) else ())) as lock:
                locked = ["-c", lock, "--build-constraints", lock]
                pip = [] if find_spec("pip") else ["pip"]
                command = [uv, "pip", "install", "--python", sys.executable, *constraints, *locked, *words, *pip]
                if subprocess.run(command, env=variables | dict(os.environ)).returncode == 0:
                    return 0
            print("uv has failed; installing with pip.", file=sys.stderr, flush=True)
    if (code := _install_by_pip([word for word in words if word != _COMPILE])) != 0:
        print(_HINT, file=sys.stderr, flush=True)
    return code


def _has_own_index(settings: Mapping[str, str]) -> bool:
    return not {"index-url", "extra-index-url", "find-links"}.isdisjoint(settings)


def _lock(unchecked: Sequence[str] = ()) -> str:
    """The text of constraints.txt, without hashes of some packages or, if the user wants so, of all."""
    if os.environ.get("UV_NO_VERIFY_HASHES") == "1":
        return without_hashes()
    return without_hashes(*unchecked) if unchecked else LOCK.read_text()


def without_hashes(*names: str) -> str:
    """The text of constraints.txt without the hashes of these packages, or of all if none is named."""
    name = "|".join(map(re.escape, names)) or r"[^\s=]+"
    return re.sub(rf"^((?:{name})==[^\n\\]*\S) \\(?:\n    --hash=.*)+", r"\1", LOCK.read_text(), flags=re.M)


def find_uv() -> str | None:
    """The uv on PATH or in this environment. If there is none, installs it here. None if that fails."""
    own = Path(sys.executable).with_name("uv")
    if (found := shutil.which("uv")) is not None:
        return found
    if not own.exists() and _install_one("uv") != 0:
        print("Installing with pip: uv is not on PATH and could not be installed.", flush=True)
        return None
    return str(own)


@cache
def _first_pip() -> Sequence[str]:
    """This environment's pip, or else that of the Python that made it. Making one takes 2 to 3 seconds."""
    base = (sys._base_executable, "-m", "pip", "--python", sys.executable, *PIP[3:])  # type: ignore[attr-defined]
    if find_spec("pip"):
        return PIP
    if subprocess.run([*base, "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
        return base
    subprocess.run([sys.executable, "-m", "ensurepip", "--default-pip"], check=True)
    return PIP


def read_pip_settings() -> dict[str, str]:
    """The settings for `pip install` in pip's files and variables."""
    listed = subprocess.run([*_first_pip(), "config", "list"], capture_output=True, text=True, check=True).stdout
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


def _install_by_pip(words: Sequence[str]) -> int:
    """Installs dependencies first, because pip checks hashes for all packages of a command or for none."""
    if (code := _install_one("pip")) != 0:
        return code
    *options, what = words
    path, _, extras = what.partition("[")
    with _file(_lock()) as lock:
        if not (Path(path).is_dir() or path.endswith(".whl")):
            return subprocess.run([*PIP, "install", "-c", lock, *words]).returncode
        if "--no-deps" not in options:
            packages = _dependencies(extras.rstrip("]"))
            code = _install_own_builds(packages)
            code = code or subprocess.run([*PIP, "install", "-c", lock, *packages]).returncode
        project = [*PIP, "install", "--build-constraint", lock, "--no-deps", *options, path]
        return code or subprocess.run(project).returncode


def _install_own_builds(packages: list[str]) -> int:
    """Installs PyTorch's build from the user's own index. The lock has no hash of such a build.

    If a hash of the lock fits any build, pip ignores all others: it would choose PyPI's, of gigabytes.
    """
    names = "|".join(_BUILT_FOR_EACH_INDEX)
    builds = [package for package in packages if re.fullmatch(rf"({names})[^\w.-].*", package)]
    if not builds or not _has_own_index(read_pip_settings()):
        return 0
    with _file(without_hashes()) as lock:
        return subprocess.run([*PIP, "install", "--no-deps", "-c", lock, *builds]).returncode


def _dependencies(extras: str) -> list[str]:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    return sum(map(project["optional-dependencies"].get, filter(None, extras.split(","))), project["dependencies"])


def _install_one(name: str) -> int:
    """Installs a package that needs no other. Every release of pip reads hashes in a file of requirements."""
    [lines] = re.findall(rf"^{name}==.*(?:\n    --hash=.*)*", _lock(), flags=re.M)
    with _file(lines) as file:
        return subprocess.run([*_first_pip(), "install", "--quiet", "--only-binary", ":all:", "-r", file]).returncode


@contextmanager
def _file(text: str) -> Iterator[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(text)
        file.flush()
        yield file.name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
