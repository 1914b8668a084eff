"""uv gets the user's settings of pip. If uv cannot install, pip installs."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tools import install

_NOTES = "import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open({log!r}, 'a')); sys.exit({code})"


@pytest.fixture(autouse=True)
def _pip_is_looked_for() -> Iterator[None]:
    install._first_pip.cache_clear()
    yield
    install._first_pip.cache_clear()


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Path]:
    """Creates the only program on PATH. It records its arguments and variables, and exits with this code."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name: str, exit_code: int) -> Path:
        log = tmp_path / f"{name}.json"
        (tmp_path / name).write_text(f"#!{sys.executable} -S\n{_NOTES.format(log=str(log), code=exit_code)}\n")
        (tmp_path / name).chmod(0o755)
        return log

    return make


def _noted(log: Path) -> tuple[list[str], dict[str, str]]:
    """The arguments and variables of the last run."""
    text = log.read_text()
    arguments, variables = json.loads(text[text.rindex("[[") :])
    return arguments, variables


def _installed_by(pip: Path) -> list[list[str]]:
    """The arguments of each run, without options and the names of temporary files."""
    runs = [json.loads(text)[0] for text in pip.read_text().replace("][[", "]\n[[").splitlines()]
    return [[argument for argument in run if argument[:2] != "--" and not argument.startswith("/")] for run in runs]


@pytest.fixture
def pip(program, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that replaces pip and has no settings."""
    log = program("pip", 0)
    monkeypatch.setattr(install, "PIP", ("pip",))
    monkeypatch.setattr(install, "read_pip_settings", dict)
    return log


def test_settings_of_pip_are_read_from_its_files_and_variables(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://a/\ncert = a.pem\n[install]\nindex-url = https://b/\n[list]\nformat = x\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_CERT", "b.pem")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    settings = install.read_pip_settings()
    assert (settings["index-url"], settings["cert"]) == ("https://b/", "b.pem")
    assert not {"find-links", "format"} & set(settings)


def test_settings_of_pip_become_variables_and_words_of_uv():
    settings = {
        "index-url": "https://a/",
        "extra-index-url": "\nhttps://b/\nfile:///c",
        "find-links": "/d /e",
        "cert": "f.pem",
        "proxy": "http://g",
        "timeout": "9",
        "trusted-host": "b",
        "constraint": "h.txt i.txt",
        "progress-bar": "off",
    }
    variables, arguments = install.translate(settings)
    assert variables == {
        "UV_INDEX_URL": "https://a/",
        "UV_EXTRA_INDEX_URL": "https://b/ file:///c",
        "UV_FIND_LINKS": "/d,/e",
        "SSL_CERT_FILE": "f.pem",
        "HTTPS_PROXY": "http://g",
        "HTTP_PROXY": "http://g",
        "UV_HTTP_TIMEOUT": "9",
        "UV_INSECURE_HOST": "b",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    assert arguments == ["-c", "h.txt", "-c", "i.txt"]


def test_uv_on_the_path_installs_with_the_users_own_settings_of_it_first(program, pip, monkeypatch):
    uv = program("uv", 0)
    monkeypatch.setattr(install, "read_pip_settings", lambda: {"index-url": "https://a/", "cert": "f.pem"})
    monkeypatch.setenv("UV_INDEX_URL", "https://mine/")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    assert install.main(["--compile-bytecode", "-e", "."]) == 0
    arguments, variables = _noted(uv)
    assert arguments[:4] == ["pip", "install", "--python", sys.executable]
    assert arguments[-3:] == ["--compile-bytecode", "-e", "."]
    assert (variables["UV_INDEX_URL"], variables["SSL_CERT_FILE"]) == ("https://mine/", "f.pem")
    assert not pip.exists()


_FIRST = ["install", ":all:", "-r"]
"""pip installs itself, or uv, by the hash in a file."""


def _project_with_pip() -> list[list[str]]:
    dependencies = tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]
    return [_FIRST, ["install", "-c", *dependencies], ["install", "-e", "."]]


def test_pip_installs_if_uv_fails(program, pip, capfd):
    program("uv", 2)
    assert install.main(["--compile-bytecode", "-e", "."]) == 0
    assert _installed_by(pip) == _project_with_pip()
    assert "uv has failed" in capfd.readouterr().err


def test_pip_installs_with_a_setting_that_uv_lacks(program, pip, monkeypatch, capfd):
    uv = program("uv", 0)
    monkeypatch.setattr(install, "read_pip_settings", lambda: {"no-binary": "numpy"})
    assert install.main(["-e", "."]) == 0
    assert _installed_by(pip) == _project_with_pip()
    assert not uv.exists() or "install" not in _noted(uv)[0]
    assert "uv has no setting for no-binary" in capfd.readouterr().out


def test_nothing_is_installed_if_pip_cannot_be(program, tmp_path, monkeypatch, capfd):
    pip = program("pip", 1)
    monkeypatch.setattr(install, "PIP", ("pip",))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert install.main(["-e", "."]) == 1
    out, err = capfd.readouterr()
    assert "uv is not on PATH and could not be installed" in out
    assert "UV_NO_VERIFY_HASHES=1" in err
    assert _installed_by(pip) == [_FIRST, _FIRST]


@pytest.mark.parametrize(("code", "found"), [(0, "base"), (1, "made")], ids=["base", "no pip"])
def test_an_environment_without_pip_uses_that_of_its_python_or_makes_one(code, found, program, tmp_path, monkeypatch):
    program("base", code)
    made = program("python", 0)
    monkeypatch.setattr(install, "find_spec", lambda _: None)
    monkeypatch.setattr(install, "PIP", ("made",))
    monkeypatch.setattr(sys, "_base_executable", str(tmp_path / "base"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert Path(install._first_pip()[0]).name == found
    assert made.exists() == (found == "made")


@pytest.mark.parametrize("key", ["index-url", "extra-index-url", "find-links", "cert"])
def test_builds_of_pytorch_from_another_index_are_not_checked(key, program, pip, monkeypatch):
    """All other packages are."""
    uv = program("uv", 0)
    monkeypatch.setattr(install, "read_pip_settings", lambda: {key: "https://a/"})
    kept: list[str] = []
    monkeypatch.setattr(install, "_file", lambda text, write=install._file: kept.append(text) or write(text))
    assert install.main(["torch"]) == 0
    assert _noted(uv)[0][4] == "-c"
    unchecked = re.findall(r"^([^\s=]+)==[^\\]*?$", kept[0], re.MULTILINE)
    assert unchecked == ([] if key == "cert" else ["torch", "triton"])


@pytest.mark.parametrize("key", ["extra-index-url", "cert"])
def test_pip_installs_the_build_of_pytorch_of_another_index_first(key, program, pip, monkeypatch):
    """Else it would choose PyPI's, whose hash it knows."""
    program("uv", 2)
    monkeypatch.setattr(install, "read_pip_settings", lambda: {key: "https://a/"})
    assert install.main(["-e", ".[embedded]"]) == 0
    runs = [[word for word in run if word != "-c"] for run in _installed_by(pip)]
    assert (["install", "torch>=2.11"] in runs) == (key == "extra-index-url")
    [all_packages] = [run for run in runs if len(run) > 5]
    assert "torch>=2.11" in all_packages
    assert runs.index(all_packages) == len(runs) - 2


_BLOCKS = re.compile(r"^(?:idna|pip|setuptools|uv)==.*(?:\n    --hash=.*)*", re.MULTILINE)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one dependency, and its constraints.txt."""
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "small"\nversion = "1"\ndependencies = ["idna"]\n[project.optional-dependencies]\n'
        "[tool.setuptools]\npackages = []\n"
    )
    (tmp_path / "constraints.txt").write_text("\n".join(_BLOCKS.findall(install.LOCK.read_text())) + "\n")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    return tmp_path


def _install(project: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [project / "venv" / "bin" / "python", "-m", "tools.install", "."]
    env = {**os.environ, "PYTHONPATH": str(Path(install.__file__).parents[1]), **variables}
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("with_pip", [{}, {"PIP_SRC": "/nowhere"}], ids=["uv", "pip"])
@pytest.mark.parametrize("name", ["idna", "setuptools", "uv", "pip"])
def test_a_package_with_another_hash_is_not_installed(name, with_pip, project):
    """setuptools builds the project. Without uv, pip installs."""
    lock = project / "constraints.txt"
    text = lock.read_text()
    [block] = re.findall(rf"^{name}==.*(?:\n    --hash=.*)*", text, re.MULTILINE)
    lock.write_text(text.replace(block, re.sub("sha256:.{60}", "sha256:" + "0" * 60, block)))
    done = _install(project, **with_pip)
    is_needed = name in ("idna", "setuptools") or (name == "pip" and bool(with_pip))
    assert (done.returncode != 0) == is_needed, done.stderr
    assert ("DO NOT MATCH THE HASHES" in done.stderr + done.stdout) == (is_needed or name == "uv")
    assert not is_needed or _install(project, UV_NO_VERIFY_HASHES="1", **with_pip).returncode == 0
