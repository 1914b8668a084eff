"""uv gets the user's settings of pip. If uv cannot install, pip installs."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import install

_NOTES = "import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open({log!r}, 'a')); sys.exit({code})"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Path]:
    """Creates the only program on PATH. It records its words and variables, and exits with the given code."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name: str, exit_code: int) -> Path:
        log = tmp_path / f"{name}.json"
        (tmp_path / name).write_text(f"#!{sys.executable} -S\n{_NOTES.format(log=str(log), code=exit_code)}\n")
        (tmp_path / name).chmod(0o755)
        return log

    return make


def _noted(log: Path) -> tuple[list[str], dict[str, str]]:
    """The words and variables of the last run."""
    text = log.read_text()
    words, variables = json.loads(text[text.rindex("[[") :])
    return words, variables


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
    variables, words = install.translate(settings)
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
    assert words == ["-c", "h.txt", "-c", "i.txt"]


def test_uv_on_the_path_installs_with_the_users_own_settings_of_it_first(program, pip, monkeypatch):
    uv = program("uv", 0)
    monkeypatch.setattr(install, "read_pip_settings", lambda: {"index-url": "https://a/", "cert": "f.pem"})
    monkeypatch.setenv("UV_INDEX_URL", "https://mine/")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    assert install.main(["--compile-bytecode", "-e", "."]) == 0
    words, variables = _noted(uv)
    assert words == ["pip", "install", "--python", sys.executable, "--compile-bytecode", "-e", "."]
    assert (variables["UV_INDEX_URL"], variables["SSL_CERT_FILE"]) == ("https://mine/", "f.pem")
    assert not pip.exists()


def test_pip_installs_if_uv_fails(program, pip, capfd):
    program("uv", 2)
    assert install.main(["--compile-bytecode", "-e", "."]) == 0
    assert _noted(pip)[0] == ["install", "-e", "."]
    assert "uv has failed" in capfd.readouterr().err


def test_pip_installs_with_a_setting_that_uv_lacks(program, pip, monkeypatch, capfd):
    uv = program("uv", 0)
    monkeypatch.setattr(install, "read_pip_settings", lambda: {"no-binary": "numpy"})
    assert install.main(["-e", "."]) == 0
    assert _noted(pip)[0] == ["install", "-e", "."]
    assert not uv.exists() or "install" not in _noted(uv)[0]
    assert "uv has no setting for no-binary" in capfd.readouterr().out


def test_pip_installs_if_uv_cannot_be_installed(program, tmp_path, monkeypatch, capfd):
    pip = program("pip", 1)
    monkeypatch.setattr(install, "PIP", ("pip",))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert install.main(["-e", "."]) == 1
    assert "uv is not on PATH and could not be installed" in capfd.readouterr().out
    words, _ = _noted(pip)
    assert words == ["install", "-e", "."]
