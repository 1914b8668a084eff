"""A server as a hardened container has it: a user without name and home, a root file system that is read-only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from openai import OpenAI
from server_process import ServerProcess

_USER = ("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups")
_MAY_READ_ALL = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
"""In a container the interpreter and the model are readable; here they may lie in root's home."""
_HOMELESS = ("env", "-u", "HOME", "-u", "XDG_CACHE_HOME", "-u", "TMPDIR", "-u", "VLLM_CACHE_ROOT")
_READ_ONLY = ("unshare", "-m", "sh", "-c", 'mount --make-rprivate / && mount -o bind,remount,ro / && exec "$@"', "sh")


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_an_arbitrary_user_without_a_place_to_write_is_served(model_path: Path) -> None:
    user = next((u for u in ((*_USER, *_MAY_READ_ALL), _USER) if _works(*u, sys.executable, "-c", "")), None)
    if user is None or not _works(*user, "head", "-c1", str(model_path / "model.safetensors")):
        pytest.skip("another user cannot read the interpreter or the model here")
    is_read_only = _works(*_READ_ONLY, "true")
    launcher = (*_HOMELESS, *(_READ_ONLY if is_read_only else ()), *user)
    arguments = [str(model_path), "--served-model-name", "smol", "--max-model-len", "256"]
    with ServerProcess(arguments, launcher=launcher) as server:
        with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            assert client.completions.create(model="smol", prompt="Hello", max_tokens=3).choices[0].text
        assert {process.uids().effective for process in server.family()} == {12345}
        assert "nothing is kept between starts: /.cache/vllm/vllm_cli cannot be written to" in server.log
        if is_read_only:
            assert "no temporary file can be made in /tmp" in server.log
        assert "Traceback" not in server.log
        assert server.terminate() == 0


def _works(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
