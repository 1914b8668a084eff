"""The folder of the standby's sockets: in vLLM's cache folder as all other modules find it."""

from pathlib import Path

import pytest

from envs.registry import env
from startup.standby.places import socket_folder


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"VLLM_CACHE_ROOT": "~/cc"},
        {"VLLM_CACHE_ROOT": "/cc"},
        {"VLLM_CACHE_ROOT": "cc"},
        {"VLLM_CACHE_ROOT": "~root/cc"},
        {"VLLM_CACHE_ROOT": "~nobody-of-this-name/cc"},
        {"VLLM_CACHE_ROOT": ""},
        {"XDG_CACHE_HOME": "~/xdg"},
        {"XDG_CACHE_HOME": ""},
        {"HOME": ""},
        {"HOME": "/else"},
        {"HOME": "/else/", "VLLM_CACHE_ROOT": "~"},
        {"HOME": None},
        {"HOME": None, "VLLM_CACHE_ROOT": "~/cc"},
        {"HOME": None, "XDG_CACHE_HOME": "~/xdg"},
    ],
    ids=str,
)
@pytest.mark.parametrize("has_name", [True, False], ids=["named", "nameless"])
def test_the_folder_is_in_the_cache_folder(
    variables: dict[str, str | None], has_name: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_name:  # a user id without an entry, as in containers
        monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    for name in ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "VLLM_CACHE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert Path(socket_folder()) == env.VLLM_CACHE_ROOT.get() / "vllm_cli" / "standby"


def test_the_runtime_folder_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert socket_folder() == "/run/user/1/vllm-cli"
