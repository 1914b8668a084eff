"""The served model: its names, and the objects that run prompts through it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from base.errors import RequestError, UnsupportedApiError
from server.engine.process_link.client import EngineClient
from server.operation.metrics.server_metrics import ServerMetrics
from server.terms.server_config import ServerConfig
from server.text.renderers.renderer import Renderer


class ServedModels:
    """Answers /v1/models and checks the `model` of every request."""

    def __init__(self, names: Sequence[str], engine: EngineClient, *, root: str | None = None) -> None:
        """`root` is the model as the operator wrote it."""
        self._names = names
        self._root = root or names[0]
        self._engine = engine

    @property
    def default_name(self) -> str:
        """The name in responses."""
        return self._names[0]

    def check(self, name: str | None) -> None:
        """Raises RequestError (404) if no model with this name is served. None means the served model."""
        if name:
            self._find(name)

    def check_generative(self, api_name: str, name: str | None) -> None:
        """Like `check`, but also raises RequestError (404) if the engine has loaded a pooling model."""
        if self._engine.info.pooling is not None:
            raise UnsupportedApiError(api_name)
        self.check(name)

    def list(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._card(name) for name in self._names]}

    def get(self, name: str) -> dict[str, Any]:
        """Returns the card of one name. Raises RequestError (404) if no model with this name is served."""
        self._find(name)
        return self._card(name)

    def _find(self, name: str) -> None:
        if name not in self._names:
            raise RequestError(
                f"The model `{name}` does not exist. Served here: {', '.join(self._names)}.",
                param="model",
                status=404,
                type="NotFoundError",
            )

    def _card(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": unix_time(),
            "owned_by": "vllm",
            "root": self._root,
            "parent": None,
            "max_model_len": self._engine.info.max_model_len,
        }


def unix_time() -> int:
    """Returns the seconds since 1970, for the field `created` of responses."""
    return int(datetime.now(UTC).timestamp())


@dataclass(frozen=True, kw_only=True)
class Inference:
    """The objects with which routes run prompts, on the event loop. A server has one such object."""

    config: ServerConfig
    models: ServedModels
    renderer: Renderer
    engine: EngineClient
    metrics: ServerMetrics
