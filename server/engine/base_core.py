"""The interface of a core, whose steps the engine's loop calls. A core generates text or pools prompts."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from server.terms.types import EngineOutput, EnginePrompt, EngineStats, Fault, PoolingParams


class BaseCore(ABC):
    """A core, used only on the engine's thread. By default, it rejects requests for another kind of model."""

    @property
    @abstractmethod
    def has_work(self) -> bool:
        """Whether a step would compute something."""

    @property
    @abstractmethod
    def stats(self) -> EngineStats:
        """The engine's figures after the last step."""

    def add(self, request_ids: Iterable[str], prompt: EnginePrompt) -> list[EngineOutput]:
        """Queues a prompt's sequences. Returns outputs only for rejected sequences."""
        return [failed(request_id, "this model does not generate text") for request_id in request_ids]

    def pool(
        self, request_id: str, prompt_token_ids: list[int], token_type_ids: list[int] | None, params: PoolingParams
    ) -> EngineOutput | None:
        """Queues a prompt to be pooled. Returns an output only if the prompt is rejected."""
        return failed(request_id, "this model generates text")

    @abstractmethod
    def abort(self, request_ids: list[str]) -> None:
        """Ends requests without further output. Ignores unknown ids, because their requests have ended."""

    def reset_prefix_cache(self, *, interrupts: bool) -> bool:
        """See `Scheduler.reset_prefix_cache`. This default is for cores without caches."""
        return True

    @abstractmethod
    def step(self) -> list[EngineOutput]:
        """Computes one batch, and returns its outputs."""

    @abstractmethod
    def prepare(self) -> Iterator[None]:
        """Makes later steps faster, and yields after each small piece of this work. Called once."""


@dataclass(frozen=True)
class PromptLimits:
    """Limits of one prompt."""

    max_model_len: int
    vocab_size: int

    def find_fault(self, token_ids: list[int], *, num_new_tokens: int) -> str | None:
        """Returns why the model cannot compute this prompt and so many new tokens, or None if it can."""
        if not 0 < len(token_ids) <= self.max_model_len - num_new_tokens:
            return f"a prompt of {len(token_ids)} tokens does not fit {self.max_model_len} tokens"
        if max(token_ids) >= self.vocab_size:
            return f"token {max(token_ids)} is beyond the model's {self.vocab_size} tokens"
        return None


def failed(request_id: str, message: str, fault: Fault = "engine") -> EngineOutput:
    """Returns the last output of a request that has failed."""
    return EngineOutput(request_id=request_id, finish_reason="error", error=message, fault=fault)
