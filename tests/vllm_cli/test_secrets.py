"""For every spelling of flags, keys, tokens and logins never appear in `ps`, messages or reports."""

import socket
import subprocess
from pathlib import Path

import pytest

from envs.redaction import hide_in_arguments
from startup.arguments.screening import secret_notices, secrets_as_variables
from startup.arguments.table import split_flags
from startup.settings.serve_arguments import join
from tests.support.cli import CLI, run_cli
from tests.support.waiting import wait_until


@pytest.mark.thorough
@pytest.mark.parametrize(
    "arguments",
    [
        "chat --api-key sesame-6 sesame-7 --url http://127.0.0.1:9",
        "serve m --api-key sesame-6 --hf-token sesame-7 --max-model-len sesame-7",
        "serve --api-key sesame-6 --kv-transfer-config.access_key sesame-7 --kv-transfer-config {",
    ],
)
def test_usage_errors_quote_no_secret(arguments):
    done = run_cli(*arguments.split())
    assert done.returncode == 2, done.stderr
    assert "sesame-" not in done.stderr


def test_a_client_shows_no_key_in_its_command_line():
    """The client waits for a server that does not respond."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        child = subprocess.Popen([*CLI, "chat", "--url", url, "--api-key", "sesame", "--quick", "x"])
        try:
            wait_until(lambda: b"--api-key\0******\0" in Path(f"/proc/{child.pid}/cmdline").read_bytes())
        finally:
            child.kill()
            child.wait()


def test_a_secret_becomes_a_variable_of_the_child():
    arguments = ["m", "--hf_tok=sesame", "--api-key", "sesame2", "--no-such-flag", "x", "--", "--hf-token", "y"]
    kept, variables = secrets_as_variables(split_flags(arguments))
    assert join(kept) == ["m", "--no-such-flag", "x", "--", "--hf-token", "y"]
    assert variables == {"HF_TOKEN": "sesame", "VLLM_API_KEY": "sesame2"}
    arguments = ["m", "--api-key", "a", "b", "--hf-token", "--port", "1"]
    kept, variables = secrets_as_variables(split_flags(arguments))
    assert (join(kept), variables) == (arguments, {}), "no variable can hold these"


def test_each_secret_flag_gets_one_notice():
    arguments = ["m", "--api-key", "a", "b", "--hf-token=c", "--port", "1"]
    both = list(secret_notices(split_flags(arguments), has_key_file=True))
    assert [notice.partition(" ")[0] for notice in both] == ["--api-key", "--hf-token"]
    assert both[0].endswith("prefer VLLM_API_KEY or --api-key-file.")
    assert next(secret_notices(split_flags(arguments), has_key_file=False)).endswith("prefer VLLM_API_KEY.")
    assert list(secret_notices(split_flags(hide_in_arguments(["m", "--hf-token"])), has_key_file=True)) == []
