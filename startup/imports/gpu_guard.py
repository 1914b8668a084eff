"""Keeps the driver of the GPUs uninitialized while modules are imported in a process that will be forked.

A fork of a process that has initialized CUDA, HIP or Level Zero cannot use the GPUs (CUDA C++ Programming
Guide, "Initialization"; torch raises "Cannot re-initialize CUDA in forked subprocess"). Some packages
initialize the driver while they are imported, to learn the GPU's architecture. The guard prevents this:

1. It reads the architecture from NVML, which initializes nothing, and gives it to these packages.
2. It makes functions that initialize a driver raise `NeedsGpuError`. Then only the forks import the module.
3. After each module, it checks whether the driver is initialized nevertheless. If it is, no fork of this
process can be an engine, and the guard reports the module.

The modules of steps 2 and 3 are recorded on disk. Later starts import these modules only in the forks.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from base.machine.gpu_driver import initialized_driver, may_have_gpu
from base.machine.nvml import read_gpus
from envs import environment, foreign
from startup.hook import Hook, Name
from startup.imports.distributions import distribution_stamps
from startup.imports.finder import replaced, watch
from startup.storage.caches import CachedValue

if TYPE_CHECKING:
    from types import FrameType

_CAPABILITY: Final = Name("torch.cuda", "get_device_capability", ("device",))
_INITIALIZE: Final = {
    Name("torch.cuda", "_lazy_init", ()): lambda torch: torch.version.hip or torch.cuda.device_count(),
    Name("torch.xpu", "_lazy_init", ()): lambda torch: torch.version.xpu,
    Name("cuda.bindings.driver", "cuInit"): lambda torch: torch.cuda.device_count(),
}
"""Functions that initialize a driver, each with a check for a GPU. Without a GPU, they initialize nothing."""
GPU_GUARD: Final = Hook(
    "GPU guard",
    does="keeps the GPU's driver uninitialized before forks, and answers questions about the architecture",
    without="if an import initializes the driver, engines and workers are new programs",
    promise="engines and workers can be forked",
    needs=(_CAPABILITY, *(name for name in _INITIALIZE if name.module.startswith("torch."))),
)

_CUTE_DSL_ARCH: Final = "CUTE_DSL_ARCH"
"""CUTLASS reads this variable on import. Without it, CUTLASS calls `cuInit` to learn the architecture."""
_ACCELERATED: Final = 9
"""From this major compute capability on, the name of the full architecture ends with `a`: `sm_90a`."""
_MODULE_CODE: Final = "<module>"
_OWN: Final = ("__main__", "server", "startup", "vllm_cli")
"""Packages of this project whose modules begin the imports."""
_FOLDER: Final = "left-to-forks"


class NeedsGpuError(BaseException):
    """A module cannot be imported before this process is forked.

    It is not an Exception, because packages catch any Exception and continue as if there were no GPU.
    """


class GpuGuard:
    """The state of the guard in this process, from its first use on."""

    def __init__(self) -> None:
        interpreter, installed = (sys.version, sys.prefix), (distribution_stamps(), _capabilities())
        self._left = CachedValue(_FOLDER, interpreter, installed)
        self._to_forks: set[str] = set(self._left.read(list[str]) or ())
        """Modules that would initialize the driver, and the modules that import them."""
        self._raised: list[NeedsGpuError] = []
        """Errors that were raised but not passed to `leave`. A package may have caught them."""
        self._reason: str | None = None

    @property
    def why_unforkable(self) -> str | None:
        """Why forks of this process cannot use the GPUs. None if they can."""
        if self._reason is None and self._raised:
            self._reason = f"a package has ignored that {self._raised[0]}"
        return self._reason

    def leave(self, err: NeedsGpuError) -> None:
        if err in self._raised:
            self._raised.remove(err)

    def begin(self, name: str) -> None:
        """Called before a module's code. Raises NeedsGpuError for a module that is left to the forks."""
        if name in self._to_forks:
            self._refuse(f"{name} uses the GPU while it is imported")
        self._check(lambda: next(iter(_importing_modules()), name))

    def end(self, name: str) -> None:
        self._check(lambda: name)

    def _check(self, culprit: Callable[[], str]) -> None:
        if self._reason is None and (driver := initialized_driver()) is not None:
            name = culprit()
            self._reason = (
                f"{name} has initialized {driver} while it was imported, which no fork can do again. "
                "Later starts import it in the engine"
            )
            self._keep(name)

    def refuse_to_initialize(self, function: str) -> None:
        """Raises NeedsGpuError if the caller is a module that is being imported."""
        if names := _importing_modules():
            self._keep(names[0])
            self._refuse(f"{names[0]} calls {function}() while it is imported")

    def _refuse(self, reason: str) -> None:
        self._to_forks.update(_importing_modules())  # their imports end with this error, too
        self._raised.append(NeedsGpuError(reason))
        raise self._raised[-1]

    def _keep(self, name: str) -> None:
        present = self._left.read(list[str], is_own=True) or ()
        self._left.write(sorted({*present, name}))


_guard: GpuGuard | None = None
_open = False


def why_unforkable() -> str | None:
    """Why forks of this process cannot use the GPUs. None if they can."""
    reason = None if _guard is None else _guard.why_unforkable
    if reason is None and (driver := initialized_driver()) is not None:
        reason = f"an import has initialized {driver}, which no fork can do again"
    return reason


def has_failed() -> bool:
    """Whether this process cannot fork an engine, although the guard is in use."""
    return _open and why_unforkable() is not None


def leave_to_forks(err: NeedsGpuError) -> None:
    """Call it when an import has ended with this error. Forks import the module later, if they need it."""
    if _guard is not None:
        _guard.leave(err)


@contextmanager
def driver_kept_uninitialized() -> Iterator[None]:
    """During the block, imports leave the driver uninitialized. Does nothing on a machine without a GPU."""
    global _guard, _open
    if _open or not GPU_GUARD.applies or initialized_driver() is not None or not (may_have_gpu() or _capabilities()):
        yield
        return
    _guard = _guard or GpuGuard()
    with ExitStack() as stack:
        capability = common_capability()
        if capability is not None:
            stack.enter_context(replaced(_CAPABILITY, functools.partial(_answer, capability)))
            if not foreign.is_set(_CUTE_DSL_ARCH):
                stack.enter_context(environment.overlaid({_CUTE_DSL_ARCH: _architecture(*capability)}))
        for name, has_gpu in _INITIALIZE.items():
            stack.enter_context(replaced(name, functools.partial(_guarded, _guard, name.path, has_gpu)))
        _open = True
        watch(_guard)
        try:
            yield
        finally:
            watch(None)
            _open = False


def _answer(capability: tuple[int, int], ask: Callable[..., tuple[int, int]]) -> Callable[..., tuple[int, int]]:
    """Wraps `get_device_capability`. Modules that import the function during the block keep the wrapper."""

    @functools.wraps(ask)
    def answer(device: Any = None) -> tuple[int, int]:
        return capability if _open and sys.modules["torch"].cuda.device_count() else ask(device)

    return answer


def _guarded(
    guard: GpuGuard, path: str, has_gpu: Callable[[Any], Any], initialize: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(initialize)
    def refuse(*args: Any, **kwargs: Any) -> Any:
        if _open and has_gpu(sys.modules["torch"]):
            guard.refuse_to_initialize(path)
        return initialize(*args, **kwargs)

    return refuse


def _importing_modules() -> list[str]:
    """The modules whose code runs on this thread, innermost first, up to the first module of this project."""
    frame: FrameType | None = sys._getframe(1)
    names: list[str] = []
    while frame is not None:
        if frame.f_code.co_name == _MODULE_CODE:
            name = str(frame.f_globals.get("__name__", ""))
            if name.partition(".")[0] in _OWN:
                break
            names.append(name)
        frame = frame.f_back
    return names


@functools.cache
def _capabilities() -> tuple[tuple[int, int] | None, ...]:
    """The compute capabilities of NVIDIA's GPUs, in the driver's order. Empty without NVIDIA's driver."""
    state = read_gpus()
    return tuple(gpu.capability for gpu in state.gpus) if state is not None else ()


def common_capability() -> tuple[int, int] | None:
    """The compute capability of all GPUs. None if it differs, since CUDA may then number them differently."""
    found = set(_capabilities())
    return found.pop() if len(found) == 1 else None


def _architecture(major: int, minor: int) -> str:
    """The architecture's name for compilers, such as `sm_90a`."""
    return f"sm_{major}{minor}{'a' if major >= _ACCELERATED else ''}"
