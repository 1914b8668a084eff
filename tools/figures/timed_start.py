"""Times starts of servers in homes of their own: ours and plain ones, of vLLM and the embedded engine.

`tools/gpu_stub/starts.py` compares our starts with plain ones. `leave_out.py` compares them with starts that
lack a part.
"""

import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple

import click

from tests.gpu_stub.gpu_server import EAGER, MODEL, GpuServer
from tests.support.program import Program
from tests.support.standby_process import OFF
from tests.vllm_engine.vllm_server import VllmServer
from tools.figures.plugin.plugin_of_figures import MARK
from tools.figures.processor_time import descendants_s
from vllm_cli.bench.phases import divide, follow_log

START_S: Final = 1200.0
SETTLED_S: Final = 6.0
"""The seconds from the first answer of an unmeasured start to its stop, in which it writes its files."""
COMPILED: Final = EAGER[1:]
"""The arguments of a start whose model vLLM compiles. An eager start has `EAGER`."""
_UNWANTED: Final = ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR")
_PLUGIN: Final = Path(__file__).with_name("plugin")
_IN_USE: Final = "home"
"""The name of a home's folder while a start uses the home."""


class Case(NamedTuple):
    """One configuration whose starts are timed."""

    arguments: tuple[str, ...] = EAGER
    gpus: int = 1
    launcher: str = "ours"
    """`ours`: our cold start. `warm`: our start beside a standby."""
    is_first: bool = False
    """Whether each start has an empty home folder."""
    has_location: bool = False
    """Whether our starts have a `--compile-cache` that another start has filled."""
    has_volume: bool = False
    """Whether our starts have empty homes, but a VLLM_CACHE_ROOT that earlier starts of ours have filled."""
    is_after_plain: bool = False
    """Whether each of our starts is the first one in a home that `vllm serve` has used."""
    has_plugin: bool = False
    """Whether a general plugin of vLLM replaces names in its modules. The model must be built with them."""
    left_out: str = ""
    """A part that our starts leave out. Then plain vLLM does not start."""

    @property
    def first_name(self) -> str:
        """The name of the starts that fill the caches of this case's starts."""
        return f"{'eager' if EAGER[0] in self.arguments else 'compiled'}, first"

    @property
    def needs_own_folder(self) -> bool:
        """Whether other cases cannot use the homes of this one."""
        return self.gpus > 1 or self.is_first or self.has_volume or self.has_plugin


class Start(NamedTuple):
    """The times of a start, in seconds since its command began. `stop` has the seconds since SIGTERM."""

    cuda: float | None
    """When the last process had initialized CUDA. Only the stand-in knows it."""
    healthy: float
    answer: float
    processor: float
    """The processor time of all processes until the answer."""
    stop: float
    phases_s: Mapping[str, float]
    """The phases of the start until the answer, as in `bench startup`."""
    kernels: Mapping[str, float] | None = None
    """What our start reports about kernels: how many it has used, and how many the engine has compiled."""


class TimedServer(VllmServer):
    """A server whose first answer has one token. Its home is `folder`."""

    MAX_TOKENS = 1
    poll_s = 0.02
    begun_s: float
    """The time of the wall clock when the command began."""
    begun_ns: int
    """The time of the monotonic clock when the command began."""
    _before_s: float

    def start(self) -> None:
        self._before_s = descendants_s()
        self.begun_s, self.begun_ns = time.time(), time.monotonic_ns()
        super().start()

    def processor_s(self) -> float:
        """The processor time of all processes since the command began, those of a standby included."""
        return descendants_s() - self._before_s

    def cuda_s(self) -> float | None:
        """When the last process had initialized CUDA, in seconds since the start. Only the stand-in knows."""
        return None


class OnStandIn(TimedServer, GpuServer):
    """vLLM's CUDA build on the stand-in for a GPU, on which no kernel runs."""

    def cuda_s(self) -> float | None:
        return max(self.initialized().values()) - self.begun_s


class OnGpu(TimedServer):
    """vLLM's CUDA build on the machine's own GPU."""

    model: ClassVar[Path]
    _CACHES: Final = ("XDG_CACHE_HOME", "TRITON_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE", "CUDA_CACHE_PATH")

    def __init__(self, launcher: str, *arguments: str, folder: Path, environment: dict[str, str]) -> None:
        caches = {name: str(folder / name.lower()) for name in self._CACHES}
        super().__init__(launcher, self.model, *arguments, folder=folder, environment=caches | environment)


class OnCpu(TimedServer):
    """vLLM's build for CPU."""

    def __init__(self, launcher: str, *arguments: str, folder: Path, environment: dict[str, str]) -> None:
        chosen = {"HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "", **environment}
        super().__init__(launcher, MODEL, *arguments, folder=folder, environment=chosen)
        for name in _UNWANTED:
            self.variables.pop(name, None)


class Embedded(OnCpu):
    """The embedded engine, in this interpreter's environment."""

    python = Path(sys.executable)
    engine = "embedded"


class Homes:
    """The homes of a series of starts, in one folder. Each has a name.

    A start always finds its home at the same path, because caches contain paths. So a copy is as good as the
    original.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.remove(_IN_USE)  # of a run that was killed

    def has(self, name: str) -> bool:
        return (self._folder / name).exists()

    @contextmanager
    def use(self, name: str) -> Iterator[Path]:
        """Yields the path of a home, which is made if there is none of this name."""
        kept, home = self._folder / name, self._folder / _IN_USE
        if kept.exists():
            kept.rename(home)
        else:
            home.mkdir(parents=True)
        try:
            yield home
        finally:
            home.rename(kept)

    @contextmanager
    def use_once(self, name: str, copy_of: str = "") -> Iterator[Path]:
        """Yields the path of an empty home, or of a copy of another. The home is removed afterwards."""
        self.remove(name)
        if copy_of:
            self.copy(copy_of, name)
        with self.use(name) as home:
            yield home
        self.remove(name)

    def copy(self, name: str, new: str) -> None:
        """Copies a home with the times of its files. Sockets and the like are left out."""
        shutil.copytree(self._folder / name, self._folder / new, symlinks=True, ignore=_leave_out_sockets)

    def remove(self, name: str) -> None:
        shutil.rmtree(self._folder / name, ignore_errors=True)


def _leave_out_sockets(folder: str, names: list[str]) -> list[str]:
    paths = {name: Path(folder, name) for name in names}
    return [name for name, path in paths.items() if not (path.is_symlink() or path.is_file() or path.is_dir())]


def time_start(
    server_type: Any,
    case: Case,
    launcher: str,
    home: Path,
    *arguments: str,
    settle_s: float = 1.0,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Start:
    """Times one start until its first answer, and the stop by SIGTERM. `server_type`: a `TimedServer`."""
    home.mkdir(exist_ok=True)
    variables = {"STUB_GPUS": str(case.gpus), **(OFF if launcher == "ours" else {}), **environment}
    if case.left_out:
        variables["VCLI_LEAVE_OUT"] = case.left_out
    if case.has_plugin:
        variables["PYTHONPATH"] = str(_PLUGIN)
    with server_type(launcher, *case.arguments, *arguments, folder=home, environment=variables) as server:
        assert server.log_path is not None
        with follow_log(server.log_path) as log:
            Program.wait(server, lambda: server.health() == 200, START_S)
            healthy = time.time() - server.begun_s
            server.generate()
            answer, processor = time.time() - server.begun_s, server.processor_s()
        if case.has_plugin and MARK not in server.log:
            raise click.ClickException(f"{launcher}: the model was built without what the plugin has replaced")
        kernels = None if launcher == "plain" else server.get("/startupz").get("kernels")
        time.sleep(settle_s)
        cuda = server.cuda_s()
        signal_s = time.time()
        server.terminate(signal.SIGTERM)
        stop = time.time() - signal_s
    ends_s = {name: (end_ns - server.begun_ns) / 1e9 for name, end_ns in log.ends_ns.items()}
    phases_s = {name: round(seconds, 2) for name, seconds in divide(ends_s | {"server": healthy}, answer).items()}
    rounded = (round(seconds, 2) for seconds in (healthy, answer, processor, stop))
    return Start(None if cuda is None else round(cuda, 2), *rounded, phases_s, kernels)
