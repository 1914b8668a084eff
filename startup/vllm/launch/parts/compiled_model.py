"""The part that fetches, explains and shares vLLM's compiled model."""

import functools
import sys
import threading
import time

from startup import start_origin
from startup.compiled_models.compile_cache import CompileCache
from startup.errors import StartupError
from startup.session.parts import Part
from startup.vllm.fork.shared_knowledge import describe_learned, known_now
from startup.vllm.journal import StartRecordings
from startup.vllm.launch.vllm_start import VllmStart


class CompiledModel(Part[VllmStart]):
    """Fetches and shares the compiled model and what starts have learned, and says why vLLM compiles."""

    needs = frozenset({"line"})

    def begin(self) -> None:
        start, session = self.start, self.start.session
        learned = describe_learned(start.vllm, start.kind)
        self._cache = CompileCache(start.vllm, start.line, start.options.compile_cache, start.journal.folder, learned)
        self._stop_began_s = 0.0
        session.stack.callback(self._cache.close)
        self._cache.begin(session.state)
        if start_origin.warm is None:  # a warm start has its imports
            self._cache.wait_for_learned()
        self._known = known_now()
        give_up = functools.partial(self._cache.give_up_sharing, "a second signal has ended the server")
        session.stop_signals.before_end = give_up

    def accepting(self) -> None:
        self._cache.describe(self.start.session.state)

    def ready(self) -> None:
        keys = StartRecordings.read(self.start.journal.folder).kernel_keys.values()
        self._cache.share(self.start.session.state, has_news=known_now() != self._known, kernel_keys=keys)

    def stopping(self) -> None:
        self._stop_began_s = time.monotonic()

    def ended(self) -> None:
        err = sys.exception()
        if err is None:
            self._cache.finish_sharing(self._wait)
        elif isinstance(err, StartupError):
            self._cache.give_up_sharing("vLLM has failed")
        if err is not None and not self.start.is_ready:
            self._cache.note_failure()

    def _wait(self, event: threading.Event) -> str:
        """Waits for the event no longer than requests may run after a signal. See `StopSignals.wait_for`."""
        signals = self.start.session.stop_signals
        begin_s = self._stop_began_s or signals.first_s or time.monotonic()
        return signals.wait_for(event, begin_s=begin_s, limit_s=self.start.line.shutdown_timeout_s)
