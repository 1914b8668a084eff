"""A server in a hardened container: a user without name and home folder, a read-only root file system."""

import os
import sys
from pathlib import Path

import pytest

from tests.containers import as_user, on_read_only_root
from tests.e2e.process_tree import for_each_process
from tests.e2e.server_process import ServerProcess

_HOMELESS = ("env", "-u", "HOME", "-u", "XDG_CACHE_HOME", "-u", "TMPDIR", "-u", "VLLM_CACHE_ROOT")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to change the user")
def test_server_runs_as_an_arbitrary_user_without_a_writable_folder(model_path):
    user = as_user(12345, 12345, Path(sys.executable), model_path / "model.safetensors")
    if user is None:
        pytest.skip("another user cannot read the interpreter or the model here")
    read_only = on_read_only_root()
    launcher = (*_HOMELESS, *(read_only or ()), *user)
    arguments = [str(model_path), "--served-model-name", "smol", "--max-model-len", "256"]
    with ServerProcess(arguments, launcher=launcher) as server:
        with server.openai() as client:
            assert client.completions.create(model="smol", prompt="Hello", max_tokens=3).choices[0].text
        assert set(for_each_process(server, lambda process: process.uids().effective)) == {12345}
        assert "nothing is cached between starts: /.cache/vllm/vllm_cli cannot be written to" in server.log
        if read_only and not any(map(os.path.ismount, ("/tmp", "/var/tmp"))):  # these are not the root's
            assert "no temporary file can be created in /tmp" in server.log
        assert "Traceback" not in server.log
        assert server.terminate() == 0
