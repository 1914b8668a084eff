"""Prepares sequences for the scheduler's queue: checks prompts, waits for grammars, encodes images."""

from collections.abc import Iterable
from typing import NamedTuple

from server.engine.base_core import PromptLimits, failed
from server.engine.prompt_features import FeatureBuilder, PromptFeatures, PromptFeaturesError
from server.engine.sampling.guided import GuidedDecodingError, GuidedStates
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from server.terms.types import EngineOutput, EnginePrompt, PromptInputs


class _Pending(NamedTuple):
    """A sequence whose grammar is not compiled yet, or whose images are not encoded yet."""

    sequence: Sequence
    images: PromptInputs | None
    """The prompt's images. None once they are encoded."""


class PendingSequences:
    """Holds sequences until they are ready for the queue. Used only on the engine's thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        limits: PromptLimits,
        guided: GuidedStates,
        features: FeatureBuilder,
    ) -> None:
        self._scheduler = scheduler
        self._limits = limits
        self._guided = guided
        self._features = features
        self._waiting: dict[str, _Pending] = {}
        """Request id -> waiting sequence, in the order of arrival."""

    @property
    def num_sequences(self) -> int:
        return len(self._waiting)

    @property
    def has_ready(self) -> bool:
        """Whether a waiting sequence has its grammar (or needs none), so that `admit_ready` can queue it."""
        return any(self._guided.is_ready(pending.sequence) for pending in self._waiting.values())

    def add(self, request_ids: Iterable[str], prompt: EnginePrompt) -> list[EngineOutput]:
        """Adds a prompt's sequences. Returns outputs only for rejected sequences."""
        fault, features = self._limits.find_fault(prompt.token_ids, num_new_tokens=1), None
        if fault is None and prompt.inputs is not None and prompt.inputs.mm is None:
            try:
                features = self._build_embeds(prompt, prompt.inputs)
            except PromptFeaturesError as err:
                fault = str(err)
        if fault is not None:
            return [failed(request_id, fault, "request") for request_id in request_ids]
        for position, request_id in enumerate(request_ids):
            sequence = Sequence(request_id, prompt.token_ids, prompt.params.of_choice(position))
            sequence.features = features
            if sequence.params.guided is not None or sequence.params.reasoning is not None:
                self._guided.start(sequence)
            images = None if features is not None else prompt.inputs
            if images is not None or sequence.grammar is not None:
                self._waiting[request_id] = _Pending(sequence, images)
            else:
                self._scheduler.add(sequence)
        return []

    def admit_ready(self) -> list[EngineOutput]:
        """Queues sequences whose grammar is ready, and encodes the images of one prompt.

        Returns outputs of rejected sequences. Each step encodes the images of only one prompt, so that
        other requests are not delayed. All choices of a prompt share its features. Small grammars do not
        overtake a large grammar that waits for memory.
        """
        rejected: list[EngineOutput] = []
        has_room = True
        encoded: PromptInputs | None = None
        for request_id, (sequence, images) in list(self._waiting.items()):
            is_turn = images is None or encoded is None or images is encoded
            if not is_turn or not self._guided.is_ready(sequence):
                continue
            if sequence.grammar is not None:
                has_room = has_room and self._guided.has_room(sequence.grammar)
                if not has_room:
                    continue
            del self._waiting[request_id]
            try:
                self._guided.admit(sequence)
                if images is not None:
                    encoded = images
                    sequence.features = self._features.build(sequence.token_ids, images)
                self._scheduler.add(sequence)
            except (GuidedDecodingError, PromptFeaturesError) as err:
                self.release(sequence)
                cause = err.fault if isinstance(err, GuidedDecodingError) else "request"
                rejected.append(failed(request_id, str(err), cause))
        return rejected

    def withdraw(self, request_ids: Iterable[str]) -> None:
        """Ends those of the sequences that are not in the scheduler's queue yet."""
        for request_id in request_ids:
            if (pending := self._waiting.pop(request_id, None)) is not None:
                self.release(pending.sequence)

    def release(self, sequence: Sequence) -> None:
        """Releases the grammar of a sequence that has ended."""
        self._guided.drop(sequence)

    def _build_embeds(self, prompt: EnginePrompt, inputs: PromptInputs) -> PromptFeatures:
        features = self._features.build(prompt.token_ids, inputs)
        if not features.has_token_ids and prompt.params.prompt_logprobs is not None:
            raise PromptFeaturesError("a prompt of embeddings has no tokens whose log-probabilities could be reported")
        return features
