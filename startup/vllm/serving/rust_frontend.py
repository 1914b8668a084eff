"""Gives the port to vLLM's Rust frontend, the program `vllm-rs` (`VLLM_USE_RUST_FRONTEND=1`).

The program has the listening socket when it starts, and accepts as soon as all engines have registered. So
this module lets an engine register only after the responder, which answers probes on the port during the
start, has stopped accepting. New connections wait some milliseconds until the program accepts them. The
program is ready when it first answers `/health` with 200.
"""

import functools
import inspect
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from envs.registry import env
from startup.hook import Hook, Name, Text
from startup.imports.finder import wrap_after_import
from startup.port.probe_http import PATH
from startup.processes import group_signals
from startup.processes.death_pipe import follow_parent
from startup.vllm_words.command_line import CommandLine
from startup.vllm_words.installed import InstalledVllm, uses_rust_frontend

_INIT: Final = Name("vllm.v1.utils", "RustFrontendProcessManager.__init__")
_ENGINE: Final = "vllm.v1.engine.core"
_REGISTER: Final = Name(_ENGINE, "EngineCoreProc.process_input_sockets")
RUST_FRONTEND: Final = Hook(
    "Rust frontend",
    does="hands the port to the frontend, reports when it is ready, and ends it with the launcher",
    without="with VLLM_USE_RUST_FRONTEND, starts are plain",
    gain="0.16 (0.16–0.23) of `vllm serve`, with all hooks",
    needs=(
        Name(_INIT.module, "RustFrontendProcessManager.shutdown", ("timeout",)),
        Text(
            (_INIT.module,), r"def __init__\(\s*self,\s*binary_path: str,\s*sock: Any,\s*args:", "its first arguments"
        ),
        Text((_INIT.module,), r"self\._proc = subprocess\.Popen\(cmd, pass_fds=", "the start of its program"),
        Text(
            (_ENGINE,), r"def process_input_sockets\(.*?input_socket\.send\(ready_payload\)", "an engine's registration"
        ),
        Text(("vllm.config.parallel",), r"data_parallel_size_local: int", "data_parallel_size_local"),
    ),
    since=(0, 30),
)

_REQUEST: Final = f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
_ANSWER_S: Final = 10.0
_RETRY_S: Final = 0.1
_LAST_ACCEPTS_S: Final = 0.02
"""Seconds from the program's SIGTERM to the end of listening."""


def follows_rust_frontend() -> bool:
    """Whether vLLM starts its Rust frontend, and the hook applies."""
    return uses_rust_frontend() and RUST_FRONTEND.applies


def obstacle_to_rust_frontend(vllm: InstalledVllm, line: CommandLine) -> str | None:
    """Why the Rust frontend cannot get the port from the responder. None if it can get it, or is not used."""
    if not RUST_FRONTEND.is_for(vllm.release) or not uses_rust_frontend() or line.has("--headless", "--grpc"):
        return None
    if line.has("--data-parallel-multi-port-external-lb"):
        return "the Rust frontend runs in several processes, at ports of their own"
    if (method := env.VLLM_WORKER_MULTIPROC_METHOD.get()) != "forkserver":
        return (
            f"the Rust frontend needs forked engines, which {env.VLLM_WORKER_MULTIPROC_METHOD.name}={method} excludes"
        )
    if line.value("--data-parallel-backend") == "ray":
        return "the Rust frontend needs forked engines, and Ray starts them here"
    if RUST_FRONTEND.name in env.VCLI_LEAVE_OUT.get():
        return f"{env.VCLI_LEAVE_OUT.name} names {RUST_FRONTEND.name!r}, without which the port would have two owners"
    return misfit_of_rust_frontend(vllm)


def misfit_of_rust_frontend(vllm: InstalledVllm) -> str | None:
    """Why the hook does not fit this vLLM. None if the hook fits or is not used."""
    if not RUST_FRONTEND.is_for(vllm.release) or not uses_rust_frontend():
        return None
    problem = next(RUST_FRONTEND.problems(), None)
    return problem and f"the hook {RUST_FRONTEND.name!r} does not fit this version ({problem})"


def register_once_port_is_free(take_port: Callable[[int], None]) -> None:
    """Makes this process, if it is an engine, call `take_port` before it registers with the Rust frontend.

    The engine passes the number of engines on this node to `take_port`.
    """

    def wrap_registration(register: Callable[..., None]) -> Callable[..., None]:
        def take_and_register(self: Any, *args: Any, **kwargs: Any) -> None:
            take_port(self.vllm_config.parallel_config.data_parallel_size_local)
            register(self, *args, **kwargs)

        return take_and_register

    if follows_rust_frontend():
        wrap_after_import(_REGISTER, wrap_registration, RUST_FRONTEND)


def follow_rust_frontend(
    is_released: threading.Event, on_ready: Callable[[], None], on_stopping: Callable[[], None]
) -> None:
    """Makes this process, if it starts the Rust frontend, report when the frontend is ready or stops.

    Args:
        is_released: set once the responder no longer accepts.
        on_ready: called on a thread when the frontend is ready.
        on_stopping: called on the main thread before the frontend stops.
    """

    def wait(processes: Sequence[Any], listener: socket.socket, is_tls: bool) -> None:
        is_released.wait()
        while any(process.is_alive() for process in processes):
            if _is_healthy(listener, is_tls=is_tls):
                on_ready()
                return
            time.sleep(_RETRY_S)

    def wrap_init(init: Callable[..., None]) -> Callable[..., None]:
        def init_and_follow(self: Any, *args: Any, **kwargs: Any) -> None:
            with _ended_with_this_process():
                init(self, *args, **kwargs)
            given = inspect.signature(init).bind(self, *args, **kwargs).arguments
            listener, is_tls = given["sock"], bool(given["args"].ssl_certfile)
            self.shutdown = functools.partial(_shut_down, self.shutdown, self.processes, listener, on_stopping)
            group_signals.start_thread("rust-frontend-readiness", wait, self.processes, listener, is_tls)

        return init_and_follow

    if follows_rust_frontend():
        wrap_after_import(_INIT, wrap_init, RUST_FRONTEND)


def _shut_down(
    end: Callable[..., None],
    processes: Sequence[Any],
    listener: socket.socket,
    on_stopping: Callable[[], None],
    timeout: float | None = None,
) -> None:
    """Replaces the manager's `shutdown`: frees the port, and lets the program finish its requests."""
    on_stopping()
    for process in processes:
        process.terminate()
    time.sleep(_LAST_ACCEPTS_S)
    with suppress(OSError):  # it does not listen yet
        listener.shutdown(socket.SHUT_RDWR)  # also for the launcher, which has a duplicate
    end(timeout=timeout)


def _is_healthy(listener: socket.socket, *, is_tls: bool) -> bool:
    """Whether the program answers `/health` with 200. The connection waits until the program accepts."""
    with suppress(OSError), socket.socket(listener.family) as plain:
        plain.settimeout(_ANSWER_S)
        plain.connect(listener.getsockname())
        if not is_tls:
            return _asks_for_health(plain)
        import ssl  # noqa: PLC0415 - most servers have no TLS

        try:
            with ssl._create_unverified_context().wrap_socket(plain) as encrypted:
                return _asks_for_health(encrypted)
        except ssl.SSLError:  # the program asks its clients for a certificate
            return True
    return False


def _asks_for_health(connection: socket.socket) -> bool:
    connection.sendall(_REQUEST)
    with connection.makefile("rb") as answer:
        return answer.read().split(b" ", 2)[1:2] == [b"200"]  # to the end: the program closes the connection


@contextmanager
def _ended_with_this_process() -> Iterator[None]:
    """Makes programs that are started inside this context end with this process, so that none keeps the port.

    Used on the main thread, because the kernel kills a program when the thread that started it ends.
    """
    start = subprocess.Popen
    follow = functools.partial(follow_parent, os.getpid())
    subprocess.Popen = functools.partial(start, preexec_fn=follow)  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        subprocess.Popen = start  # type: ignore[misc]
