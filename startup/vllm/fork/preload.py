"""Preloads vLLM's modules when the forkserver imports this module.

The import itself does the work, because a forkserver accepts only names of modules. The work runs on the
forkserver's main thread, with the garbage collector paused. The forkserver then forks engine and workers,
which inherit the imported modules.
"""

import gc
import time
from contextlib import suppress

from envs import environment
from startup.vllm.fork.openmp_state import record_openmp

gc.disable()
_BEGIN_NS = time.monotonic_ns()
_AT_EXEC = environment.snapshot()
record_openmp()

from pathlib import Path  # noqa: E402
from typing import Final  # noqa: E402

from base.machine.processes import process_start_ns  # noqa: E402
from envs.registry import env  # noqa: E402
from startup.compiled_models.exchange import Exchange  # noqa: E402
from startup.compiled_models.vllm_hooks import report_compiled_models  # noqa: E402
from startup.hook import find_unfit_silently, place_only_for, unfit, uses  # noqa: E402
from startup.imports.gpu_guard import why_unforkable  # noqa: E402
from startup.logs.setup import configure_own_loggers  # noqa: E402
from startup.processes import group_signals  # noqa: E402
from startup.processes.forkserver import refuse_forks  # noqa: E402
from startup.reports.crash.output_record import OutputRecord  # noqa: E402
from startup.vllm.fork.forkserver import redirect_spawn  # noqa: E402
from startup.vllm.fork.kernel_processes import begin_compiling  # noqa: E402
from startup.vllm.fork.preload_plan import PreloadPlan  # noqa: E402
from startup.vllm.journal import FORKSERVER, Journal, this_start  # noqa: E402
from startup.vllm.patches.model_registry import model_modules  # noqa: E402
from startup.vllm.patches.placing import place_hooks  # noqa: E402
from startup.vllm.patches.process_titles import find_title_memory  # noqa: E402
from startup.vllm.vllm_imports import import_leniently, importing_vllm  # noqa: E402

_PACKAGE: Final = "vllm"
"""Its import imports torch, and comes before that of its modules anyway."""


def _preload(plan: PreloadPlan) -> None:
    configure_own_loggers("forkserver", env.VCLI_LOG_FORMAT.get(), lambda: "preload_imports")
    place_only_for(plan.release)
    find_unfit_silently()
    find_title_memory()
    journal = this_start.journal = Journal(Path(plan.folder))
    this_start.record = OutputRecord(Path(plan.folder))
    this_start.environment = _AT_EXEC
    report_compiled_models(Exchange(Path(plan.folder)))
    place_hooks("forkserver")
    with importing_vllm(plan.compiler, late_in="forkserver" if plan.is_lean and uses("lean imports") else None):
        import_leniently((_PACKAGE,))
        if why_unforkable() is None:
            begin_compiling(plan.kernels, only_slow=True)
        import_leniently(plan.modules)
        if plan.model is not None:
            import_leniently(model_modules(Path(plan.model)))
    if (reason := why_unforkable()) is not None:
        refuse_forks(reason)
    gc.freeze()
    gc.enable()
    redirect_spawn(_AT_EXEC)
    if reason is None:  # a process that has initialized a driver must not be forked
        begin_compiling(plan.kernels)
    journal.write(unfit=unfit())
    journal.write(process=FORKSERVER, span="interpreter", begin_ns=process_start_ns(), end_ns=_BEGIN_NS)
    journal.write(process=FORKSERVER, span="preload_imports", begin_ns=_BEGIN_NS, end_ns=time.monotonic_ns())


def _read_plan() -> PreloadPlan | None:
    """The preload plan. None if this process is not the forkserver of a start, or if the start has ended."""
    path = env.VCLI_PRELOAD_PLAN.get()
    with suppress(FileNotFoundError):
        return PreloadPlan.read(Path(path)) if path is not None else None
    return None


with group_signals.ignored():  # Ctrl-C ends the launcher, and its end ends this process
    if (_plan := _read_plan()) is not None:
        _preload(_plan)
if _plan is not None:
    group_signals.leave_ctrl_c_to_parent()
