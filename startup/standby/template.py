"""A template process imports the modules of a kind of server, then forks a server for each front process.

It has one thread when it forks, so that its forks are complete copies. It reads nothing from a front process.
"""

import gc
import importlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from base.machine.descriptors import low_numbers_taken, move_socket_up, move_up
from base.machine.libc import HUGE_PAGE_BYTES, collapse_page
from envs import environment
from startup.errors import StartupError
from startup.files.model.checkpoint_folder import modeling_module
from startup.files.model.file_plan import plan_files
from startup.files.model.model_request import ModelRequest
from startup.imports.gpu_guard import why_unforkable
from startup.imports.heavy import import_engine
from startup.imports.torch_environment import set_torch_variables
from startup.processes import death_pipe
from startup.processes.forks import Forks
from startup.settings.serve_arguments import LauncherLine
from startup.standby import sockets
from startup.standby.forked_server import EarlyRead as EarlyRead  # the type of what `read` returns
from startup.standby.forked_server import FrontLink as FrontLink  # the type of what `wait_for_start` returns
from startup.standby.forked_server import TemplateFacts, take_over
from startup.standby.import_state import ImportEnvironment, InstalledFiles, execute_with, recorded_reads, written_since
from startup.standby.sockets import EMBEDDED, VLLM_EAGER, peer_of

if TYPE_CHECKING:
    from startup.vllm.launch.template_imports import TemplateImports
    from startup.vllm_arguments.vllm_line import VllmLine

logger = logging.getLogger(__name__)

READY: Final = b"ready"
STALE: Final = b"stale"
INCOMPLETE: Final = b"incomplete"
STARTED: Final = b"started"
ENDED: Final = b"ended"
"""Messages to the standby: imports are ready, outdated or incomplete, or a server was forked or has ended."""

_HUGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def wait_for_start(
    kind: str, models: Sequence[str], standby_fd: int, read: Callable[[LauncherLine], EarlyRead]
) -> FrontLink:
    """Runs the template process. Returns only in the processes that it forks. Each of them is a server.

    Also imports the classes of the models and loads their tokenizers. `standby_fd` is a SEQPACKET socket to
    the standby. Each fork calls `read` before the front process agrees. Raises StartupError if this process
    cannot fork servers.
    """
    with low_numbers_taken():
        death_pipe.follow_parent(os.getppid())
        imports = choose_imports(kind, models)
        given = execute_with(imports.variables)
        files = InstalledFiles()
        before = environment.snapshot()
        begin_s = time.monotonic()
        with recorded_reads() as names:
            imports.run()
        import_s = time.monotonic() - begin_s
    files.record_loaded()
    _check_can_fork()
    death_pipe.follow_no_parent()  # from now on, the end of the standby is an end of file
    # In this order: garbage is not frozen, and only memory that stays is moved into huge pages.
    gc.collect()
    gc.freeze()
    collapse_memory()
    facts = TemplateFacts(
        pid=os.getpid(),
        environment=ImportEnvironment(given, frozenset(names), written_since(before)),
        read=read,
        why_cold=imports.why_cold,
        files=files,
        import_s=import_s,
    )
    with socket.socket(fileno=move_up(standby_fd)) as standby, move_socket_up(_listen(kind)) as listener:
        standby.send(READY + b" %.3f" % import_s)
        return _Template(listener, standby, facts, imports).run()


class _Template:
    """The loop of a template process: forks servers and reports their ends."""

    def __init__(
        self,
        listener: socket.socket,
        standby: socket.socket,
        facts: TemplateFacts,
        imports: "EmbeddedImports | TemplateImports",
    ) -> None:
        self._listener = listener
        self._standby = standby
        self._facts = facts
        self._imports = imports
        self._forks = Forks()

    def run(self) -> FrontLink:
        """Forks until the standby ends or replaces this process. Then waits until all servers have ended."""
        while True:
            ready = self._wait(self._listener.fileno(), self._standby.fileno())
            if self._standby.fileno() in ready:  # end of file
                self._listener.close()
                while self._forks.connections:
                    self._wait()
                os._exit(0)  # the end of the interpreter would free all modules, and some libraries report leaks
            if self._listener.fileno() in ready:
                link = self._fork_for(self._accept_all())
                if link is not None:
                    return link

    def _wait(self, *fds: int) -> set[int]:
        """Waits until a descriptor is readable or servers have ended. Reports these to the standby."""
        ready, ended = self._forks.wait(*fds)
        for pid in ended:
            self._report(ENDED + b" %d" % pid)
            if (reason := self._imports.why_renew()) is not None:
                self._report(INCOMPLETE + b" " + os.fsencode(reason))
        return ready

    def _fork_for(self, connections: list[socket.socket]) -> FrontLink | None:
        """Forks a process for each connection. Returns a link only in a forked process."""
        while connections:
            connection = connections.pop(0)
            front_pid, _ = peer_of(connection)
            try:
                is_fork = self._forks.fork(connection, self._listener, *connections)
            except OSError as err:  # the start is cold
                logger.warning("no server can be forked: %s", err)
                continue
            if is_fork:
                link = take_over(connection, front_pid, self._facts, self._report_stale)
                self._report(STARTED + b" %d" % os.getpid())
                self._standby.close()
                return link
        return None

    def _accept_all(self) -> list[socket.socket]:
        """Accepts all waiting front processes of this user. Sends the byte `ACK` to each of them at once.

        Called before any of them gets a fork, because a front process waits for the byte only `_ACK_S`.
        """
        accepted: list[socket.socket] = []
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return accepted
            if peer_of(connection)[1] != os.geteuid():
                connection.close()
                continue
            with suppress(OSError):
                connection.send(sockets.ACK, socket.MSG_DONTWAIT)
            accepted.append(connection)

    def _report_stale(self, reason: str) -> None:
        self._report(STALE + b" " + os.fsencode(reason[:1000]))

    def _report(self, message: bytes) -> None:
        with suppress(OSError):
            self._standby.send(message, socket.MSG_DONTWAIT)


def _listen(kind: str) -> socket.socket:
    folder_fd = sockets.create_folder()
    try:
        return sockets.listen(folder_fd, kind, socket.SOCK_STREAM)
    finally:
        os.close(folder_fd)


def _check_can_fork() -> None:
    """Raises StartupError if forks of this process could not become servers."""
    num_threads = len(list(Path("/proc/self/task").iterdir()))
    if num_threads > 1:
        logger.debug("the template process has %d threads, of which forks have only one", num_threads)
    if (reason := why_unforkable()) is not None:
        raise StartupError(reason)


def collapse_memory() -> int:
    """Moves this process's memory into huge pages, if the administrator allows it. Returns their number.

    Forks are then several times as fast, because a fork copies one entry per page. For 250 MB, these are 130
    entries instead of 64,000. A server needs four forks. When a fork writes to a huge page, the kernel splits
    the page and copies only the 4 KiB that are written to. Memory that the server allocates later is not
    affected.
    """
    try:
        if "[never]" in _HUGE_PAGES.read_text():
            return 0
    except OSError:  # the kernel has none
        return 0
    num_pages = 0
    for begin, end in _private_memory():
        first = -(-begin // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        num_pages += sum(map(collapse_page, range(first, end - HUGE_PAGE_BYTES + 1, HUGE_PAGE_BYTES)))
    logger.debug("%d MB of memory are in huge pages", num_pages * HUGE_PAGE_BYTES >> 20)
    return num_pages


def _private_memory() -> Iterator[tuple[int, int]]:
    """Yields the address ranges of the heap and of other writable private memory, except stacks and files."""
    with Path("/proc/self/maps").open("rb") as maps:
        lines = maps.readlines()
    for line in lines:
        addresses, access, _, _, inode, *name = line.split(None, 5)
        is_anonymous = inode == b"0" and (not name or os.fsdecode(name[0]).strip() == "[heap]")
        if access == b"rw-p" and is_anonymous:
            begin, _, end = addresses.partition(b"-")
            yield int(begin, 16), int(end, 16)


_EMBEDDED: Final = (
    "startup.embedded.start",
    "startup.embedded.engine_process",
    "startup.session.preflight.all_checks",
    "server.run.api_process",
    "server.text.renderers.renderer",
    "server.text.renderers.images.vision",
    "server.engine.pooling.core",
    "startup.port.tls_channel",
    "startup.logs.json_lines",
    "startup.processes.forkserver",
    "torch._prims.rng_prims",
)
"""The API process's modules, and the engine's module for random numbers (for others: `import_engine`)."""


def choose_imports(kind: str, models: Sequence[str]) -> "EmbeddedImports | TemplateImports":
    """Returns the imports of a template of this kind."""
    if kind == EMBEDDED:
        return EmbeddedImports(models)
    from startup.vllm.launch.template_imports import TemplateImports
    from startup.vllm_arguments.installed import require_vllm

    return TemplateImports(require_vllm(), models, is_eager=kind == VLLM_EAGER)


class EmbeddedImports:
    """The imports of the embedded engine's template. Every start of the embedded engine can use them."""

    variables: ClassVar[Mapping[str, str]] = {}

    def __init__(self, models: Sequence[str]) -> None:
        self._models = models

    def run(self) -> None:
        """Imports the modules of a server and the classes of the given models. Loads their tokenizers."""
        set_torch_variables()
        import_engine()
        for module in _EMBEDDED:
            importlib.import_module(module)
        with suppress(Exception):  # speeds up only: compiles the patterns by which any model's weights are renamed
            importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
        for model in self._models:
            files = plan_files(ModelRequest(model=model)).files
            if files is None:
                continue
            with suppress(Exception):  # loading the model reports faults
                if (model_class := modeling_module(files.path)) is not None:
                    importlib.import_module(model_class)
                importlib.import_module("server.text.renderers.tokenizers.loading").keep_tokenizer(files.tokenizer_path)

    def why_cold(self, _: "VllmLine | None") -> str | None:
        return None

    def why_renew(self) -> str | None:
        return None
