"""The engine process's main function.

The main thread loads the model and runs the loop. A second thread only receives messages. When the API
process exits for any reason, its end of the socket closes. Then the engine process exits.
"""

import errno
import io
import logging
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count, islice
from math import inf
from pathlib import Path
from time import monotonic
from typing import NoReturn

import msgspec

from base import exit_codes
from base.errors import EngineMemoryError, EngineStartError
from base.machine.file_stamps import FileStamp, read_stamp
from base.machine.processors import affinity_count, read_processor_time, usable_count
from server.engine.base_core import BaseCore
from server.engine.compute.thread_count import ThreadCount
from server.engine.idle_work import IdleWork, Imports
from server.engine.phases import Phases
from server.engine.process_link.messages import (
    LENGTH,
    Abort,
    Failed,
    FromEngine,
    Generate,
    Ping,
    Pong,
    Pool,
    PrefixCacheReset,
    Prompt,
    Ready,
    ResetPrefixCache,
    Step,
    ToEngine,
)
from server.terms.config import EngineConfig, ModelFiles
from server.terms.types import EngineInfo, EngineOutput, EnginePrompt
from server.text.model_files import read_model_kind

logger = logging.getLogger(__name__)


_TEXTS_OF_MEMORY_FAILURE = (
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "bad_alloc",
    "out of memory",
)
"""Texts by which torch's RuntimeErrors (on a CPU) and C++ exceptions report a lack of memory."""
_ALLOCATOR = "DefaultCPUAllocator: "
_MAX_REASON_CHARS = 200

_Built = tuple[BaseCore, EngineInfo]


def run_engine(
    connection: socket.socket,
    files: ModelFiles,
    config: EngineConfig,
    phases: Phases,
    imports: Imports,
) -> None:
    """Runs the engine until the process exits. `phases` contains the spans of this process so far."""
    loop = _EngineLoop(connection)
    try:
        loop.run(files, config, phases, imports)
    except ChannelClosedError:
        code = 0
    except EngineStartError as err:
        loop.fail(str(err))
        code = exit_codes.START_FAILED
    except ModelFilesChangedError as err:
        loop.fail(str(err))
        code = exit_codes.ENGINE_FAILED
    except Exception as err:
        logger.exception("the engine failed")
        loop.fail(_describe(err))
        code = exit_codes.ENGINE_FAILED
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Does not join the threads of torch and of the receiver, and does not free the KV cache.
    os._exit(code)


class ModelFilesChangedError(Exception):
    """A file with weights that this process uses was written to. The weights are no longer the model's."""


class MappedFiles:
    """The model's files that this process has mapped: on a CPU, the weights are the pages of their files.

    A mapped file stays unchanged when its folder is removed, or when another file replaces it.
    """

    def __init__(self) -> None:
        self._stamps: dict[int, tuple[str, FileStamp]] = {}
        """Descriptor of an open file -> its path and its stamp."""

    def watch(self, folder: Path) -> None:
        """Notes the stamps of the mapped files. Called once, when the model is loaded."""
        own = {str(path.resolve()) for path in folder.rglob("*")}
        with suppress(OSError), open("/proc/self/maps") as maps:  # noqa: PTH123
            mapped = {line.split(None, 5)[-1].rstrip("\n") for line in maps}
            for path in own & mapped:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self._stamps[fd] = (path, read_stamp(fd))

    def check(self) -> None:
        """Raises ModelFilesChangedError if a file has been written to. Takes a microsecond per file."""
        for fd, (path, stamp) in self._stamps.items():
            if read_stamp(fd) != stamp:
                raise ModelFilesChangedError(
                    f"{Path(path).name} was written to while the server was using it: start it again. To replace a "
                    "model below a running server, write new files and rename them"
                )


def _describe(err: Exception) -> str:
    """Returns one line for users. Names a remedy if memory was lacking, or else refers to the log."""
    if not _is_memory_failure(err):
        return "the engine failed (its log has the traceback)"
    of_allocator = str(err).partition(_ALLOCATOR)[2]
    lines = of_allocator.splitlines() or str(err).splitlines() or [type(err).__name__]
    reason = lines[0].strip()[:_MAX_REASON_CHARS]
    return f"the engine ran out of memory ({reason}): lower --max-num-seqs or --max-model-len, or give it more memory"


def _is_memory_failure(err: Exception) -> bool:
    import torch

    if isinstance(err, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(err, OSError):
        return err.errno == errno.ENOMEM
    return isinstance(err, RuntimeError) and any(text in str(err).lower() for text in _TEXTS_OF_MEMORY_FAILURE)


def _is_plain(message: ToEngine) -> bool:
    """Whether the message needs only the parts of torch that the API process's own request has needed.

    Other messages would import further parts of torch, in an order that torch does not support.
    """
    if isinstance(message, Generate):
        return message.params.guided is None and all(prompt.inputs is None for prompt in message.prompts)
    return not isinstance(message, ResetPrefixCache)


def _add(message: Generate, core: BaseCore) -> list[EngineOutput]:
    """Queues a request's sequences, which share its parameters. Returns outputs of rejected sequences."""
    rejected: list[EngineOutput] = []
    names = (f"{message.request_id}-{index}" for index in count())
    for prompt in message.prompts:
        params = msgspec.structs.replace(message.params, max_tokens=prompt.max_tokens, reasoning=prompt.reasoning)
        engine_prompt = EnginePrompt(prompt.token_ids, params, prompt.inputs)
        rejected += core.add(islice(names, message.num_choices), engine_prompt)
    return rejected


def _build(
    files: ModelFiles, config: EngineConfig, phases: Phases, imports: Imports, wake: Callable[[], None]
) -> _Built:
    try:
        return _find_build(files, config, wake)(files, config, phases)
    except EngineMemoryError:
        raise
    except Exception as err:
        # The model may need a module that a stand-in replaces. A faulty model fails again below.
        if not imports.restore():
            raise
        logger.debug("loading the model again, with all of torch: %s", err)
    # Outside of the handler: the exception keeps the first model alive, and a GPU may lack room for two.
    return _find_build(files, config, wake)(files, config, phases)


def _find_build(
    files: ModelFiles, config: EngineConfig, wake: Callable[[], None]
) -> Callable[[ModelFiles, EngineConfig, Phases], _Built]:
    kind = read_model_kind(files.path, config)
    if kind.is_pooling:
        from server.engine.pooling.core import build_pooling_core

        return partial(build_pooling_core, kind)
    from server.engine.build import build_core

    return partial(build_core, wake=wake)


class _EngineLoop:
    """Receives requests from the socket, steps the engine core, and sends its outputs."""

    def __init__(self, connection: socket.socket) -> None:
        self._channel = BlockingChannel(connection)
        self._encoder = msgspec.msgpack.Encoder()
        self._inbox: queue.SimpleQueue[ToEngine | Exception | None] = queue.SimpleQueue()
        """Messages, and the receiver's error. None: the core has work that did not arrive as a message."""
        self._is_loaded = False
        self._mapped = MappedFiles()

    def run(self, files: ModelFiles, config: EngineConfig, phases: Phases, imports: Imports) -> NoReturn:
        """Loads the model, then serves requests.

        Raises:
            EngineStartError: the model cannot be loaded.
            ChannelClosedError: the API process closed the connection.
        """
        threading.Thread(target=self._receive_all, name="engine-receiver", daemon=True).start()
        with phases.span("import_engine"):
            from server.engine.build import use_threads

        # Loading uses all processors. The cgroup's quota limits the number of threads only afterwards.
        use_threads(config.num_threads or affinity_count())
        core, info = _build(files, config, phases, imports, lambda: self._inbox.put(None))
        imports.end()
        self._mapped.watch(files.path)
        threads = ThreadCount(
            config.num_threads or usable_count(),
            is_fixed=config.num_threads is not None or info.device != "cpu",
            use_threads=use_threads,
            read_time=read_processor_time,
        )
        self._is_loaded = True
        phases.current = "serving"
        self._send(Ready(msgspec.structs.replace(info, pid=os.getpid())))
        self._serve(core, threads, imports)

    def _serve(self, core: BaseCore, threads: ThreadCount, imports: Imports) -> NoReturn:
        idle = IdleWork(core, imports)
        while True:
            for message in self._receive(until_s=0 if core.has_work else idle.due_s):
                if not _is_plain(message):
                    imports.restore()
                self._handle(message, core)
                if not isinstance(message, Ping):
                    idle.note_request()
            step_s = self._step(core, threads) if core.has_work else 0.0
            idle.run_if_due(step_s)

    def _step(self, core: BaseCore, threads: ThreadCount) -> float:
        """Computes a step and sends its outputs. Returns the seconds that the step took."""
        begin_s = monotonic()
        outputs = core.step()
        self._mapped.check()
        step_s = monotonic() - begin_s
        stats = core.stats
        self._send(Step(outputs, stats))
        threads.record(step_s, stats.num_iteration_tokens)
        return step_s

    def _handle(self, message: ToEngine, core: BaseCore) -> None:
        rejected: list[EngineOutput] = []
        match message:
            case Generate():
                rejected = _add(message, core)
            case Pool(request_id, prompt_token_ids, token_type_ids, params):
                rejection = core.pool(request_id, prompt_token_ids, token_type_ids, params)
                rejected = [] if rejection is None else [rejection]
            case Abort(request_ids):
                core.abort(request_ids)
                self._send(Step([], core.stats))
            case Ping():
                self._send(Pong())
            case ResetPrefixCache(interrupts):
                is_done = core.reset_prefix_cache(interrupts=interrupts)
                self._send(Step([], core.stats))
                self._send(PrefixCacheReset(is_done))
        if rejected:
            self._send(Step(rejected, core.stats))

    def fail(self, message: str) -> None:
        """Sends the reason for the exit to the API process, or logs it if the connection is closed."""
        try:
            self._send(Failed(message))
        except ChannelClosedError:
            logger.error("%s", message)

    def _send(self, message: FromEngine) -> None:
        self._channel.send(self._encoder.encode(message))

    def _receive(self, *, until_s: float) -> Iterator[ToEngine]:
        """Yields messages, or raises the receiver's error. Waits for a first message until `until_s`."""
        wait_s = until_s - monotonic()
        while True:
            try:
                message = self._inbox.get(wait_s > 0, None if wait_s == inf else wait_s)
            except queue.Empty:
                return
            wait_s = 0
            if isinstance(message, Exception):
                raise message
            if message is not None:
                yield message

    def _receive_all(self) -> None:
        decoder = msgspec.msgpack.Decoder(ToEngine)
        try:
            while True:
                message = decoder.decode(self._channel.receive())
                if isinstance(message, Generate):
                    parts = map(self._channel.receive_bytes, message.part_sizes)
                    prompts = [attach(prompt, parts) for prompt in message.prompts]
                    message = msgspec.structs.replace(message, prompts=prompts)
                self._inbox.put(message)
        except Exception as err:  # noqa: BLE001 - the main thread raises it
            if isinstance(err, ChannelClosedError) and not self._is_loaded:
                # The main thread may load the model for minutes, and no process waits for it any more.
                os._exit(0)
            self._inbox.put(err)


def attach(prompt: Prompt, parts: Iterator[memoryview]) -> Prompt:
    """Returns the prompt with its tokens and tensors, which arrive in `parts` after the message."""
    token_ids = next(parts).cast("q").tolist()
    inputs = prompt.inputs
    if inputs is not None:
        inputs = inputs.replace_tensors(lambda tensor: msgspec.structs.replace(tensor, data=next(parts)))
    return msgspec.structs.replace(prompt, token_ids=token_ids, inputs=inputs)


class ChannelClosedError(ConnectionError):
    """The other process closed the connection or exited."""


class BlockingChannel:
    """The engine's end of the connection. One thread may send while another thread receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.setblocking(True)
        self._reader = io.BufferedReader(connection.makefile("rb", buffering=0), 1 << 16)

    def send(self, payload: bytes) -> None:
        """Sends one message. Raises ChannelClosedError once the API process has closed the connection."""
        try:
            self._connection.sendall(LENGTH.pack(len(payload)) + payload)
        except OSError as err:
            raise ChannelClosedError("the API process closed the connection") from err

    def receive(self) -> memoryview:
        """Returns the next message. Raises ChannelClosedError at the end of the stream."""
        (num_bytes,) = LENGTH.unpack(self.receive_bytes(LENGTH.size))
        return self.receive_bytes(num_bytes)

    def receive_bytes(self, num_bytes: int) -> memoryview:
        """Returns the bytes that follow a message. Their memory is aligned for tensors, and writable."""
        data = memoryview(bytearray(num_bytes))
        try:
            is_complete = self._reader.readinto(data) == num_bytes
        except OSError as err:
            raise ChannelClosedError("the connection to the API process broke") from err
        if not is_complete:
            raise ChannelClosedError("the API process closed the connection")
        return data

    def close(self) -> None:
        """Closes both directions, which also unblocks a receiving thread."""
        self._connection.close()
