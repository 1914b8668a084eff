"""The engine process's main function.

The main thread loads the model and runs the loop; a second thread only receives. When the API process exits,
for whatever reason, its end of the socket closes and this process exits.
"""

import gc
import logging
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Protocol

import msgspec

from server.config import EngineConfig, ModelFiles
from server.engine.compute.thread_count import ThreadCount
from server.engine.phases import Phases
from server.engine.process_link.channel import BlockingChannel, ChannelClosedError
from server.engine.process_link.messages import (
    Abort,
    DropUpload,
    Failed,
    FromEngine,
    Generate,
    LoadAdapter,
    Piece,
    Ping,
    Pong,
    Pool,
    Ready,
    Request,
    ResetEncoderCache,
    ResetPrefixCache,
    Step,
    ToEngine,
    UnloadAdapter,
)
from server.engine.process_link.uploads import Uploads
from server.errors import EngineMemoryError, EngineStartError
from server.machine.cpus import affinity_count, usable_count
from server.machine.heap import HeapTrimmer
from server.machine.processor_time import read_processor_time
from server.model_files.kind import read_model_kind
from server.types import EngineInfo, EngineOutput, EnginePrompt

if TYPE_CHECKING:
    from server.engine.core import EngineCore
    from server.engine.pooling.core import PoolingCore

    Built = tuple[EngineCore | PoolingCore, EngineInfo]

logger = logging.getLogger(__name__)

EXIT_START_FAILED = 3
EXIT_ENGINE_FAILED = 4

_IDLE_WORK_DELAY_S = 0.5
"""From the first request, the API process's own, to the first idle work, a part of which takes 0.4 s: a
client that has waited for readiness comes first."""

_IDLE_WORK_SHARE = 0.5
"""Of a step's time; an idle engine does one piece at a time. Packing the weights takes 1.4 s for 135 million
parameters, in pieces of at most 20 ms, and makes later steps up to three times as fast."""

_TRIM_DELAY_S = 5.0
"""From the last step to trimming the heap, which takes 15 ms."""


class Imports(Protocol):
    """Lean imports: how this process imported torch and transformers."""

    def end(self) -> None:
        """From now on imports are not replaced by stand-ins."""

    def restore(self) -> bool:
        """Imports the modules that stand-ins replaced in torch; whether there were any."""


def run_engine(
    connection: socket.socket,
    files: ModelFiles,
    config: EngineConfig,
    phases: Phases,
    imports: Imports,
) -> None:
    """Runs the engine until the process exits; does not return.

    Args:
        connection: this process's end of the socket pair.
        files: the model.
        config: the engine's settings.
        phases: the spans of this process so far.
        imports: the lean imports of this process.
    """
    loop = _EngineLoop(connection)
    try:
        code = loop.run(files, config, phases, imports)
    except ChannelClosedError:
        code = 0
    except Exception as err:
        logger.exception("the engine failed")
        loop.fail(_describe(err))
        code = EXIT_ENGINE_FAILED
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Skips joining the threads of torch and of the receiver, and freeing the KV cache.
    os._exit(code)


def _describe(err: Exception) -> str:
    from server.engine.memory_failure import describe_memory_failure

    return describe_memory_failure(err) or "the engine failed; its log has the traceback"


def _is_plain(message: Request) -> bool:
    """Whether it needs no more of torch than the API process's own request has needed.

    What else is imported then would be imported in an order that torch does not support.
    """
    match message:
        case Generate(prompts=prompts, params=params):
            has_inputs = any(prompt.inputs is not None for prompt in prompts)
            return not has_inputs and params.guided is None and not params.adapter_id
        case Pool() | Ping() | Abort():
            return True
    return False


def _add(message: Generate, core: "EngineCore | PoolingCore") -> list[EngineOutput]:
    """Queues a request's sequences, which share its parameters; returns outputs of rejected ones."""
    rejected: list[EngineOutput] = []
    names = (f"{message.request_id}-{index}" for index in count())
    for prompt in message.prompts:
        params = msgspec.structs.replace(message.params, max_tokens=prompt.max_tokens, reasoning=prompt.reasoning)
        rejected += core.add(islice(names, message.num_choices), EnginePrompt(prompt.token_ids, params, prompt.inputs))
    return rejected


def _do_idle_work(core: "EngineCore | PoolingCore", seconds: float) -> bool:
    """Does idle work for about this time, at least one piece; True while there is more."""
    end_s = monotonic() + seconds
    while core.do_idle_work():
        if monotonic() >= end_s:
            return True
    return False


def _build(
    files: ModelFiles, config: EngineConfig, phases: Phases, imports: Imports, wake: Callable[[], None]
) -> "Built":
    try:
        return _find_build(files, config, wake)(files, config, phases)
    except EngineMemoryError:
        raise
    except Exception as err:
        # The model may need a module that a stand-in replaced. A faulty model fails again below.
        if not imports.restore():
            raise
        logger.debug("loading the model again, with all of torch: %s", err)
    # Outside of the handler: the exception keeps the first model alive, and a GPU may have no room for two.
    return _find_build(files, config, wake)(files, config, phases)


def _find_build(
    files: ModelFiles, config: EngineConfig, wake: Callable[[], None]
) -> "Callable[[ModelFiles, EngineConfig, Phases], Built]":
    kind = read_model_kind(files.path, config)
    if kind.is_pooling:
        from server.engine.pooling.build import build_pooling_core

        return partial(build_pooling_core, kind)
    from server.engine.build import build_core

    return partial(build_core, wake=wake)


class _WorkIsReady:
    """In the inbox: the core has work that did not come with a message."""


class _EngineLoop:
    """Receives requests from the socket, steps the engine core and sends its outputs."""

    def __init__(self, connection: socket.socket) -> None:
        self._channel = BlockingChannel(connection)
        self._encoder = msgspec.msgpack.Encoder()
        self._inbox: queue.SimpleQueue[Request | Exception | _WorkIsReady | None] = queue.SimpleQueue()
        self._is_loaded = False

    def run(self, files: ModelFiles, config: EngineConfig, phases: Phases, imports: Imports) -> int:
        """Loads the model, then serves until the socket closes; returns the exit code."""
        threading.Thread(target=self._receive_all, name="engine-receiver", daemon=True).start()
        with phases.span("import_engine"):
            from server.engine.build import use_threads

        # Loading uses all processors; the cgroup's quota limits the number of threads only afterwards.
        use_threads(config.num_threads or affinity_count())
        try:
            core, info = _build(files, config, phases, imports, lambda: self._inbox.put(_WorkIsReady()))
        except EngineStartError as err:
            self.fail(str(err))
            return EXIT_START_FAILED
        imports.end()
        threads = ThreadCount(
            config.num_threads or usable_count(),
            is_fixed=config.num_threads is not None or info.device != "cpu",
            use_threads=use_threads,
            read_time=read_processor_time,
        )
        self._is_loaded = True
        phases.current = "serving"
        self._send(Ready(msgspec.structs.replace(info, pid=os.getpid())))
        has_idle_work = True
        idle_work_due_s = inf
        trimmer = HeapTrimmer(_TRIM_DELAY_S)
        while True:
            idle_until_s = min(trimmer.due_s, idle_work_due_s if has_idle_work else inf)
            for message in self._messages(until_s=0 if core.has_work else idle_until_s):
                if message is None:
                    return 0
                if not _is_plain(message):
                    imports.restore()
                self._handle(message, core)
                if idle_work_due_s == inf and not isinstance(message, Ping):
                    idle_work_due_s = monotonic() + _IDLE_WORK_DELAY_S
            step_s = 0.0
            if core.has_work:
                begin_s = monotonic()
                outputs = core.step()
                step_s = monotonic() - begin_s
                stats = core.stats
                self._send(Step(outputs, stats))
                threads.record(stats.num_iteration_tokens, step_s)
                trimmer.postpone()
            trimmer.trim_if_due()
            if has_idle_work and monotonic() >= idle_work_due_s:
                has_idle_work = _do_idle_work(core, step_s * _IDLE_WORK_SHARE) or core.has_work or imports.restore()
                if not has_idle_work:
                    gc.freeze()  # else a full collection traverses all objects: 50 ms in the middle of a step

    def _handle(self, message: Request, core: "EngineCore | PoolingCore") -> None:
        rejected: list[EngineOutput] = []
        match message:
            case Generate():
                rejected = _add(message, core)
            case Pool(request_id, prompt_token_ids, token_type_ids, pooling_params):
                rejection = core.pool(request_id, prompt_token_ids, token_type_ids, pooling_params)
                rejected = [] if rejection is None else [rejection]
            case Abort(request_ids):
                core.abort(request_ids)
                self._send(Step([], core.stats))
            case ResetPrefixCache() | ResetEncoderCache():
                done = core.execute(message)
                self._send(Step([], core.stats))
                self._send(done)
            case LoadAdapter():
                self._send(core.load_adapter(message))
            case UnloadAdapter(adapter_id):
                core.unload_adapter(adapter_id)
            case Ping():
                self._send(Pong())
        if rejected:
            self._send(Step(rejected, core.stats))

    def fail(self, message: str) -> None:
        """Sends the API process the reason for the exit; logs it if the connection is closed."""
        try:
            self._send(Failed(message))
        except ChannelClosedError:
            logger.error("%s", message)

    def _send(self, message: FromEngine) -> None:
        self._channel.send(self._encoder.encode(message))

    def _messages(self, *, until_s: float) -> Iterator[Request | None]:
        """Received messages; waits for the first one until a time on the monotonic clock, which may be over.

        None ends the stream. Raises the receiver's errors.
        """
        wait_s = until_s - monotonic()
        while True:
            try:
                message = self._inbox.get(wait_s > 0, None if wait_s == inf else wait_s)
            except queue.Empty:
                return
            wait_s = 0
            if isinstance(message, Exception):
                raise message
            if not isinstance(message, _WorkIsReady):
                yield message

    def _receive_all(self) -> None:
        decoder = msgspec.msgpack.Decoder(ToEngine)
        uploads = Uploads()
        try:
            while True:
                message = decoder.decode(self._channel.receive())
                if isinstance(message, Piece | DropUpload):
                    uploads.handle(message)
                else:
                    self._inbox.put(uploads.complete(message) if isinstance(message, Generate) else message)
        except ChannelClosedError:
            if not self._is_loaded:
                # The main thread may be loading the model for minutes, and no process waits for it.
                os._exit(0)
            self._inbox.put(None)
        except Exception as err:  # noqa: BLE001 - the main thread raises it
            self._inbox.put(err)
