"""What a start of vLLM keeps for later starts: modules of its processes, kernels, facts about this vLLM."""

from dataclasses import dataclass, replace
from pathlib import Path

from startup import start_origin
from startup.hook import log_unfit, unfit
from startup.imports.learned_imports import learn_beside
from startup.kernels.kernel_lists import KernelUse
from startup.session.preflight.report import PreflightReport
from startup.vllm.fork.kernel_processes import learn_kernels
from startup.vllm.fork.preload_profile import PreloadProfile, load_profile
from startup.vllm.fork.shared_knowledge import known_now
from startup.vllm.journal import StartRecordings
from startup.vllm.launch.vllm_start import VllmStart


@dataclass(frozen=True)
class Learning:
    """What one start has known from earlier ones, and what it adds."""

    start: VllmStart
    profile: PreloadProfile
    model: Path | None
    """The folder of the model before the start. None if it was not on disk."""
    kernels: KernelUse
    known: object
    """What the start knew at its begin (`known_now`)."""
    report: PreflightReport | None
    """What the preflight has found. None if it did not run."""

    @property
    def has_news(self) -> bool:
        """Whether this start has learned what it did not know."""
        return known_now(load_profile(self.profile.kind)) != self.known

    def learn(self) -> None:
        """Adds this start's modules to the preload profile. Keeps facts about this vLLM (`KeptFacts`)."""
        self.start.journal.record_modules()
        self.start.journal.is_open = False
        recordings = StartRecordings.read(self.start.journal.folder)
        if names := recordings.unfit.difference(unfit()):
            log_unfit(sorted(names))
        learn_kernels(self.kernels, recordings)
        has_compiled = self.start.session.state.info().compile == "compiled"
        profile = self.profile.updated_with(
            recordings, is_warm=start_origin.warm is not None, has_compiled=has_compiled
        )
        replace(profile, model=str(self.model) if self.model is not None else profile.model).save()
        if start_origin.warm is None:  # otherwise the template has imported
            learn_beside(name for names in recordings.modules.values() for name in names)
        is_doubted = self.report is None or bool(self.report.errors or self.report.warnings)
        self.start.facts.record(is_doubted=self.start.is_ready and is_doubted)

    def learn_kernels(self) -> None:
        """Keeps the kernels that were used so far."""
        learn_kernels(self.kernels, StartRecordings.read(self.start.journal.folder))
