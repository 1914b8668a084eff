"""What a template process of each kind imports."""

import importlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Protocol

from startup.config import ModelConfig
from startup.engine.torch_environment import set_torch_variables
from startup.imports.heavy import import_engine
from startup.model.checkpoint_folder import modeling_module
from startup.model.location import locate
from startup.standby.kinds import EMBEDDED, VLLM_EAGER

_EMBEDDED: Final = (
    "startup.embedded_start",
    "startup.engine.process",
    "startup.preflight.run",
    "startup.model.hub",
    "server.run",
    "server.renderers.registry",
    "server.renderers.hf",
    "server.renderers.vision",
    "server.renderers.mistral",
    "server.renderers.deepseek_v32",
    "server.renderers.grok2",
    "server.engine.pooling.build",
    "startup.probes.tls_channel",
    "startup.logs.json_lines",
    "multiprocessing.popen_forkserver",
    "torch._prims.rng_prims",
)
"""Modules of the API process, and what an engine imports for its random numbers; its others are those of
`import_engine`."""


class TemplateImports(Protocol):
    """The imports of one template process."""

    @property
    def variables(self) -> Mapping[str, str]:
        """Variables that the process must be executed with."""

    def run(self) -> None:
        """Imports the modules of a kind of server, and what the models need."""

    def why_cold(self, words: Sequence[str]) -> str | None:
        """Why a server with these words after `serve` cannot use the imports; None if it can."""

    def why_renew(self) -> str | None:
        """What starts have recorded beyond these imports, as a reason in words; None if nothing."""


def choose_imports(kind: str, models: Sequence[str]) -> TemplateImports:
    """The imports of a kind of template."""
    if kind == EMBEDDED:
        return _EmbeddedImports(models)
    from startup.vllm.installed import require_vllm
    from startup.vllm.launch.shared_imports import SharedImports

    return SharedImports(require_vllm(), models, is_eager=kind == VLLM_EAGER)


class _EmbeddedImports:
    """The imports of the embedded engine's template."""

    def __init__(self, models: Sequence[str]) -> None:
        self.variables: dict[str, str] = {}
        self._models = models

    def run(self) -> None:
        _preload_embedded(self._models)

    def why_cold(self, words: Sequence[str]) -> str | None:
        return None

    def why_renew(self) -> str | None:
        return None


def _preload_embedded(models: Sequence[str]) -> None:
    set_torch_variables()
    import_engine()
    for module in _EMBEDDED:
        importlib.import_module(module)
    with suppress(Exception):  # an optimisation: compiles the patterns by which the weights of any model are renamed
        importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
    for model in models:
        files = locate(ModelConfig(model=model)).files
        if files is None:
            continue
        with suppress(Exception):  # loading the model reports faults
            if (model_class := modeling_module(files.path)) is not None:
                importlib.import_module(model_class)
            importlib.import_module("server.renderers.registry").keep_tokenizer_of(files)
