"""The part that compiles and keeps kernels."""

from contextlib import suppress
from dataclasses import replace

from startup.session.parts import Part
from startup.vllm.fork.kernel_processes import KernelProcesses, kernel_use, learn_kernels, summarize
from startup.vllm.journal import StartRecordings
from startup.vllm.launch.vllm_start import VllmStart


class Kernels(Part[VllmStart]):
    """Lets the forkserver compile kernels beside the engine, and keeps the used kernels."""

    needs = frozenset({"line", "plan"})
    gives = frozenset({"plan"})
    is_optional = True

    def begin(self) -> None:
        start = self.start
        self._processes: KernelProcesses | None = None
        self._is_model_known = start.line.model_folder is not None
        if start.options.start_method == "forkserver" and not start.vllm.is_for_cpu:
            with suppress(OSError):
                self._processes = KernelProcesses(start.journal.folder)
                start.plan = replace(start.plan, kernels=kernel_use(start.vllm, start.line, start.kind))

    def before_serving(self) -> None:
        """Comes after the download, which may have changed the model's files."""
        self._use = kernel_use(self.start.vllm, self.start.line, self.start.kind)
        if self._processes is not None and not self._is_model_known:
            self._processes.tell(self._use)

    def accepting(self) -> None:
        if self._processes is not None:
            self._processes.end()
        if (kernels := summarize(self.start.recordings)) is not None:
            self.start.session.state.set_kernels(kernels)

    def ready(self) -> None:
        learn_kernels(self._use, StartRecordings.read(self.start.journal.folder))

    def ended(self) -> None:
        if self.start.is_ready or self.start.is_headless:  # first requests need kernels, too
            self.ready()
