"""The names under which the model is served, and which endpoints fit it; answers /v1/models."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from base.errors import RequestError, UnsupportedApiError
from server.engine.process_link.client import EngineClient
from server.operation.lora import LoraAdapters


class ModelCard(msgspec.Struct, kw_only=True):
    """One served model name."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "vllm"
    root: str
    parent: str | None = None
    max_model_len: int | None
    """None for LoRA adapters, as in vLLM."""


class ModelList(msgspec.Struct, kw_only=True):
    """All served model names."""

    object: str = "list"
    data: list[ModelCard]


class ServedModels:
    """Answers /v1/models and checks the `model` of every request."""

    def __init__(
        self, names: Sequence[str], engine: EngineClient, adapters: LoraAdapters, *, root: str | None = None
    ) -> None:
        """`root` is the model as the operator names it."""
        self._names = names
        self._root = root or names[0]
        self._engine = engine
        self._adapters = adapters

    @property
    def default_name(self) -> str:
        """The base model's name in responses."""
        return self._names[0]

    def response_name(self, name: str | None) -> str:
        """The name in the response to a request with this `model`."""
        adapter = self._adapters.find(name)
        return self.default_name if adapter is None else adapter.name

    def adapter_id(self, name: str | None) -> int:
        """The LoRA adapter that a request's `model` names; 0 for the base model."""
        adapter = self._adapters.find(name)
        return 0 if adapter is None else adapter.adapter_id

    def check(self, name: str | None) -> None:
        """Raises RequestError (404) if a request names another model; no name means the served one."""
        if name:
            self._find(name)

    def check_generative(self, api_name: str, name: str | None) -> None:
        """As `check`; raises RequestError (404), too, if the engine has loaded a model that pools."""
        if self._engine.info.pooling is not None:
            raise UnsupportedApiError(api_name)
        self.check(name)

    def list(self) -> ModelList:
        """The cards of all names, the base model's first."""
        return ModelList(data=[self._card(name) for name in (*self._names, *(a.name for a in self._adapters.served))])

    def get(self, name: str) -> ModelCard:
        """The card of one name; raises RequestError (404) if it is not served."""
        self._find(name)
        return self._card(name)

    def _find(self, name: str) -> None:
        if name not in self._names and self._adapters.find(name) is None:
            raise RequestError(
                f"The model `{name}` does not exist; served here: {', '.join(self._names)}.",
                param="model",
                status=404,
                type="NotFoundError",
            )

    def _card(self, name: str) -> ModelCard:
        adapter = self._adapters.find(name)
        return ModelCard(
            id=name,
            created=unix_time(),
            root=self._root if adapter is None else adapter.path,
            parent=None if adapter is None else adapter.parent,
            max_model_len=self._engine.info.max_model_len if adapter is None else None,
        )


def unix_time() -> int:
    """Seconds since 1970, for the `created` of responses."""
    return int(datetime.now(UTC).timestamp())
