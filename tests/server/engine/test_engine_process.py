"""The engine's loop on a real socket, in a thread of the test. Models load with lean imports."""

import gc
import os
import queue
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from base.errors import EngineStartError
from base.machine import libc
from server.engine import build, engine_process, idle_work
from server.engine.engine_process import BlockingChannel, ChannelClosedError, MappedFiles, ModelFilesChangedError
from server.engine.model_loading import load_model
from server.engine.phases import Phases
from server.engine.process_link.client import detach
from server.engine.process_link.messages import FromEngine, Generate, Ping, Pong, Prompt, Ready, Step
from server.engine.sampling.grammar import GrammarCompiler
from server.terms.config import EngineConfig, ModelFiles
from server.terms.types import GuidedDecoding, SamplingParams
from tests.support.waiting import wait_until

pytestmark = pytest.mark.thorough

TIMEOUT_S = 60


class Imports:
    """Fake lean imports. They record that the real modules are restored, at idle or after a failed load."""

    def __init__(self, *, are_lean: bool = False) -> None:
        self._are_lean = are_lean
        self.restored = threading.Event()

    def end(self) -> None:
        pass

    def restore(self) -> bool:
        self.restored.set()
        return self._are_lean


class Engine:
    """The API process's end of the socket."""

    def __init__(self, connection: socket.socket, imports: Imports) -> None:
        self._channel = BlockingChannel(connection)
        self._connection = connection
        self.imports = imports

    def send(self, message: Any) -> None:
        self._channel.send(msgspec.msgpack.encode(message))

    def generate(self, name: str, token_ids: list[int], **params: Any) -> None:
        prompt, [following] = detach(Prompt(token_ids, 1))
        self.send(Generate(name, [prompt], SamplingParams(max_tokens=1, **params), part_sizes=[len(following)]))
        self._connection.sendall(following)

    def receive(self) -> FromEngine:
        return msgspec.msgpack.decode(self._channel.receive(), type=FromEngine)


@pytest.fixture
def engine(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT_S)
    monkeypatch.setattr(engine_process.os, "_exit", lambda code: None)  # the receiver's, if loading fails
    imports = Imports()
    config = EngineConfig(num_threads=torch.get_num_threads(), max_num_seqs=2)
    arguments = (ModelFiles(tiny_llama, tiny_llama), config, Phases(), imports)

    def run() -> None:
        with suppress(ChannelClosedError):
            engine_process._EngineLoop(theirs).run(*arguments)

    loop = threading.Thread(target=run)
    loop.start()
    yield Engine(ours, imports)
    ours.shutdown(socket.SHUT_RDWR)
    loop.join(TIMEOUT_S)
    ours.close()
    theirs.close()
    gc.unfreeze()
    wait_until(_compiles_no_grammar)


def _compiles_no_grammar() -> bool:
    """Whether the threads that compile grammars have ended: once they idle and the executor is collected."""
    gc.collect()
    return not any(thread.name.startswith(("engine-grammar", "engine-trial")) for thread in threading.enumerate())


def _overwrite(model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(len(data) // 2)
        file.write(data[: len(data) // 2])


def _replace(model: Path) -> None:
    shutil.copy(model / "model.safetensors", model / "new")
    (model / "new").rename(model / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "is_safe"),
    [
        pytest.param(_overwrite, False, id="overwritten in place"),
        pytest.param(lambda model: os.truncate(model / "model.safetensors", 0), False, id="truncated"),
        pytest.param(_replace, True, id="replaced"),
        pytest.param(lambda model: shutil.rmtree(model.resolve()), True, id="removed"),
        pytest.param(lambda model: model.resolve().rename(model.with_name("moved")), True, id="moved"),
        pytest.param(lambda model: model.unlink(), True, id="flipped link"),
        pytest.param(lambda model: (model / "config.json").write_text("{}"), True, id="another file"),
    ],
)
def test_weights_that_were_written_to_are_noticed(change, is_safe, tmp_path, tiny_llama):
    shutil.copytree(tiny_llama, tmp_path / "one")
    (tmp_path / "model").symlink_to("one")
    loaded = load_model(tmp_path / "model", EngineConfig())
    mapped = MappedFiles()
    mapped.watch(tmp_path / "model")
    mapped.check()
    change(tmp_path / "model")
    with nullcontext() if is_safe else pytest.raises(ModelFilesChangedError, match=r"^model.safetensors was written"):
        mapped.check()
    del loaded


def test_idle_work_begins_after_the_first_request_though_pings_come_before(engine):
    assert isinstance(engine.receive(), Ready)
    for _ in range(3):
        engine.send(Ping())
        assert isinstance(engine.receive(), Pong)
    assert not engine.imports.restored.is_set()
    engine.generate("a", [1, 2])
    assert isinstance(engine.receive(), Step)
    assert engine.imports.restored.wait(TIMEOUT_S)


def test_a_client_that_waited_for_readiness_is_served_before_idle_work(engine, monkeypatch):
    monkeypatch.setattr(idle_work, "_DELAY_S", float(TIMEOUT_S))
    assert isinstance(engine.receive(), Ready)
    for name in ("the API process", "a client"):
        engine.generate(name, [1, 2])
        assert isinstance(engine.receive(), Step)
    assert not engine.imports.restored.is_set()


@pytest.mark.parametrize("is_idle", [True, False], ids=["without work", "under lasting load"])
def test_an_engine_trims_its_heap(engine, monkeypatch, is_idle):
    """An engine without work trims its heap once until the next work."""
    trimmed: queue.SimpleQueue[None] = queue.SimpleQueue()
    monkeypatch.setattr(libc, "trim_heap", lambda: trimmed.put(None))
    monkeypatch.setattr(idle_work, "_TRIM_DELAY_S", 0.0 if is_idle else float(TIMEOUT_S))
    monkeypatch.setattr(idle_work, "_TRIM_INTERVAL_S", float(TIMEOUT_S) if is_idle else 0.0)
    assert isinstance(engine.receive(), Ready)
    for name in ("one", "two"):
        engine.generate(name, [1, 2])
        assert isinstance(engine.receive(), Step)
        trimmed.get(timeout=TIMEOUT_S)
        for _ in range(3):
            engine.send(Ping())
            assert isinstance(engine.receive(), Pong)
        assert not is_idle or trimmed.empty()


def test_a_grammar_is_compiled_beside_the_loop(engine, monkeypatch):
    go_on = threading.Event()
    compile_grammar = GrammarCompiler._compile
    monkeypatch.setattr(
        GrammarCompiler, "_compile", lambda *given: go_on.wait(TIMEOUT_S) and compile_grammar(*given), raising=True
    )
    assert isinstance(engine.receive(), Ready)
    engine.generate("guided", [1], guided=GuidedDecoding("regex", "x"))
    engine.generate("free", [1, 2])
    engine.send(Ping())
    received = [engine.receive(), engine.receive()]
    [step] = [message for message in received if isinstance(message, Step)]
    assert [output.request_id for output in step.outputs] == ["free-0"]
    assert (step.stats.num_waiting, step.stats.num_deferred) == (1, 1)
    go_on.set()
    step = engine.receive()
    assert isinstance(step, Step)
    assert [(output.request_id, output.token_ids) for output in step.outputs] == [("guided-0", [ord("x")])]


@pytest.mark.parametrize(("are_lean", "num_faults", "num_loads"), [(True, 1, 2), (True, 2, 2), (False, 1, 1)])
def test_a_load_that_fails_with_lean_imports_is_repeated_with_all_modules(
    tiny_llama, monkeypatch, are_lean, num_faults, num_loads
):
    imports, load, had_all_modules = Imports(are_lean=are_lean), build.load_model, []

    def load_or_fail(*arguments: object) -> object:
        had_all_modules.append(imports.restored.is_set())
        if len(had_all_modules) <= num_faults:
            raise EngineStartError("cannot load the weights: NotImplementedError: aten::erfinv on the meta device")
        return load(*arguments)

    monkeypatch.setattr(build, "load_model", load_or_fail)
    files, config = ModelFiles(tiny_llama, tiny_llama), EngineConfig(max_num_seqs=1)
    with nullcontext() if num_faults < num_loads else pytest.raises(EngineStartError, match="erfinv"):
        assert engine_process._build(files, config, Phases(), imports, wake=lambda: None)[1].model_type == "llama"
    assert had_all_modules == [False, True][:num_loads]
