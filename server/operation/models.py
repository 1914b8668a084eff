"""The served model: its names, its LoRA adapters, and the objects that run prompts through it."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import NamedTuple

import msgspec

from base.errors import EngineStartError, RequestError, UnsupportedApiError
from envs.home import expand_home
from server.engine.process_link.client import EngineClient
from server.engine.process_link.messages import Done
from server.operation.admission import RequestContext
from server.operation.metrics.server_metrics import ServerMetrics
from server.terms.http_body.request_body import RequestBody
from server.terms.http_body.response_body import BinaryResponse
from server.terms.server_config import ServerConfig
from server.text.renderers.base import BaseRenderer

logger = logging.getLogger(__name__)


class LoadLoraAdapterRequest(RequestBody, kw_only=True):
    """The body of a request to load an adapter."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False
    """Whether the adapter replaces a loaded adapter with the same name."""


class UnloadLoraAdapterRequest(RequestBody, kw_only=True):
    """The body of a request to unload an adapter."""

    lora_name: str


class ServedAdapter(NamedTuple):
    """An adapter that requests may name as `model`."""

    adapter_id: int
    """The adapter's id in the engine. Each load gets a new id, so cached prefixes are not mixed up."""
    name: str
    path: str
    """The path as the user wrote it."""
    folder: Path
    parent: str
    """The name of the base model."""


class LoraAdapters:
    """The adapters of one server. Every method runs on the event loop."""

    def __init__(self, config: ServerConfig, engine: EngineClient) -> None:
        self._config = config
        self._engine = engine
        self._adapters: dict[str, ServedAdapter] = {}
        self._ids = count(1)
        self._changing = asyncio.Lock()

    @property
    def served(self) -> Iterable[ServedAdapter]:
        """The adapters in the order in which they were loaded."""
        return self._adapters.values()

    def find(self, name: str | None) -> ServedAdapter | None:
        """Returns the adapter with this name. None if `name` is None or unknown."""
        return self._adapters.get(name) if name else None

    async def load_static(self) -> None:
        """Loads the adapters of `--lora-modules`.

        Raises:
            EngineStartError: an adapter of `--lora-modules` cannot be loaded.
            EngineDeadError: the engine died.
        """
        for module in self._config.lora_modules:
            try:
                adapter = self._describe(module.name, module.path, module.base_model_name)
                error = (await self._load(adapter)).error
            except RequestError as err:
                error = err.message
            if error is not None:
                raise EngineStartError(f"--lora-modules {module.name}={module.path}: {error}")

    async def load(self, request: LoadLoraAdapterRequest, context: RequestContext) -> BinaryResponse:
        """Loads or replaces an adapter. Running requests keep the weights with which they began.

        Raises:
            RequestError: the name is taken, or the adapter is missing, broken, not allowed or for another
                model.
        """
        name, path = request.lora_name, request.lora_path
        async with self._changing:
            self._check_load(request)
            before = self.find(name)
            report = await self._load(self._describe(name, path, None))
            if report.is_missing:
                message = f"Loading lora {name} failed: No adapter found for {path} ({report.error})."
                raise RequestError(message, param="lora_path", status=404, type="NotFoundError")
            if report.error is not None:
                raise RequestError(f"Loading lora {name} failed: {report.error}.", param="lora_path")
            if before is not None:
                self._engine.unload_adapter(before.adapter_id)
        return _plain(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: UnloadLoraAdapterRequest, context: RequestContext) -> BinaryResponse:
        """Removes an adapter. Running requests use it until they end.

        Raises:
            RequestError: there is no adapter with this name.
        """
        name = request.lora_name
        if not name:
            message = "'lora_name' needs to be provided to unload a LoRA adapter."
            raise RequestError(message, param="lora_name", type="InvalidUserInput")
        async with self._changing:
            adapter = self._adapters.pop(name, None)
            if adapter is None:
                message = f"The lora adapter '{name}' cannot be found."
                raise RequestError(message, param="lora_name", status=404, type="NotFoundError")
            self._engine.unload_adapter(adapter.adapter_id)
        logger.info("LoRA adapter %s removed", name)
        return _plain(f"Success: LoRA adapter '{name}' removed successfully.")

    def _check_load(self, request: LoadLoraAdapterRequest) -> None:
        name, path = request.lora_name, request.lora_path
        if not name or not path:
            raise RequestError(
                "Both 'lora_name' and 'lora_path' must be provided.",
                param="lora_path" if name else "lora_name",
                type="InvalidUserInput",
            )
        if name in self._config.served_model_names:
            message = f"The lora adapter '{name}' conflicts with a served base model."
            raise RequestError(message, param="lora_name", type="InvalidUserInput")
        if name in self._adapters and not request.load_inplace:
            raise RequestError(
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
                "set 'load_inplace' to True.",
                param="lora_name",
                type="InvalidUserInput",
            )
        root = self._config.lora_adapter_root
        if root is not None and not self._folder(path).is_relative_to(Path(root).resolve()):
            message = f"The lora path '{path}' is outside of {root} (--lora-adapter-root)."
            raise RequestError(message, param="lora_path", type="InvalidUserInput")

    async def _load(self, adapter: ServedAdapter) -> Done:
        """Loads the adapter into the engine. If this succeeds, requests may name the adapter."""
        report = await self._engine.load_adapter(adapter.adapter_id, adapter.name, str(adapter.folder))
        if report.error is None:
            self._adapters[adapter.name] = adapter
            logger.info("LoRA adapter %s loaded from %s", adapter.name, adapter.folder)
        return report

    def _describe(self, name: str, path: str, base_model_name: str | None) -> ServedAdapter:
        names = self._config.served_model_names
        parent = base_model_name if base_model_name in names else names[0]
        return ServedAdapter(next(self._ids), name, path, self._folder(path), parent)

    def _folder(self, path: str) -> Path:
        """Returns the absolute path without links. Relative paths begin at `--lora-adapter-root`, if set."""
        try:
            return Path(self._config.lora_adapter_root or ".", expand_home(path)).resolve()
        except (ValueError, OSError, RuntimeError) as err:  # a null byte, a circle of links, an unknown user
            raise RequestError(f"The lora path {path!r} is not a path: {err}.", param="lora_path") from err


def _plain(text: str) -> BinaryResponse:
    return BinaryResponse(text.encode(), content_type=b"text/plain; charset=utf-8")


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
        """`root` is the model as the operator wrote it."""
        self._names = names
        self._root = root or names[0]
        self._engine = engine
        self._adapters = adapters

    @property
    def default_name(self) -> str:
        """The base model's name in responses."""
        return self._names[0]

    def response_name(self, name: str | None) -> str:
        """Returns the name in the response to a request with this `model`."""
        adapter = self._adapters.find(name)
        return self.default_name if adapter is None else adapter.name

    def adapter_id(self, name: str | None) -> int:
        """Returns the id of the LoRA adapter with this name. 0 for the base model."""
        adapter = self._adapters.find(name)
        return 0 if adapter is None else adapter.adapter_id

    def check(self, name: str | None) -> None:
        """Raises RequestError (404) if no model with this name is served. None means the served model."""
        if name:
            self._find(name)

    def check_generative(self, api_name: str, name: str | None) -> None:
        """Like `check`, but also raises RequestError (404) if the engine has loaded a pooling model."""
        if self._engine.info.pooling is not None:
            raise UnsupportedApiError(api_name)
        self.check(name)

    def list(self) -> ModelList:
        """Returns the cards of all names. The base model's names come first."""
        return ModelList(data=[self._card(name) for name in (*self._names, *(a.name for a in self._adapters.served))])

    def get(self, name: str) -> ModelCard:
        """Returns the card of one name. Raises RequestError (404) if no model with this name is served."""
        self._find(name)
        return self._card(name)

    def _find(self, name: str) -> None:
        if name not in self._names and self._adapters.find(name) is None:
            raise RequestError(
                f"The model `{name}` does not exist. Served here: {', '.join(self._names)}.",
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
    """Returns the seconds since 1970, for the field `created` of responses."""
    return int(datetime.now(UTC).timestamp())


@dataclass(frozen=True, kw_only=True)
class Inference:
    """The objects with which routes run prompts, on the event loop. A server has one such object."""

    config: ServerConfig
    models: ServedModels
    renderer: BaseRenderer
    engine: EngineClient
    metrics: ServerMetrics
