"""What a template process of each kind imports."""

import importlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Final

from startup.engine.torch_environment import set_torch_variables
from startup.imports.heavy import import_engine
from startup.model.checkpoint_folder import modeling_module
from startup.model.file_plan import plan_files
from startup.model.request import ModelRequest
from startup.standby.kinds import EMBEDDED, VLLM_EAGER

if TYPE_CHECKING:
    from startup.vllm.launch.shared_imports import SharedImports

_EMBEDDED: Final = (
    "startup.embedded_start",
    "startup.engine.process",
    "startup.preflight.run",
    "server.run",
    "server.renderers.registry",
    "server.renderers.hf",
    "server.renderers.vision",
    "server.renderers.mistral",
    "server.engine.pooling.build",
    "startup.probes.tls_channel",
    "startup.logs.json_lines",
    "multiprocessing.popen_forkserver",
    "torch._prims.rng_prims",
)
"""Modules of the API process, and what an engine imports for its random numbers; its others are those of
`import_engine`."""


def choose_imports(kind: str, models: Sequence[str]) -> "EmbeddedImports | SharedImports":
    """The imports of a kind of template."""
    if kind == EMBEDDED:
        return EmbeddedImports(models)
    from startup.vllm.installed import require_vllm
    from startup.vllm.launch.shared_imports import SharedImports

    return SharedImports(require_vllm(), models, is_eager=kind == VLLM_EAGER)


class EmbeddedImports:
    """The imports of the embedded engine's template; every start can use them."""

    variables: ClassVar[Mapping[str, str]] = {}

    def __init__(self, models: Sequence[str]) -> None:
        self._models = models

    def run(self) -> None:
        """Imports the modules of a server, and what the models need."""
        set_torch_variables()
        import_engine()
        for module in _EMBEDDED:
            importlib.import_module(module)
        with suppress(Exception):  # an optimisation: compiles the patterns by which any model's weights are renamed
            importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
        for model in self._models:
            files = plan_files(ModelRequest(model=model)).files
            if files is None:
                continue
            with suppress(Exception):  # loading the model reports faults
                if (model_class := modeling_module(files.path)) is not None:
                    importlib.import_module(model_class)
                importlib.import_module("server.renderers.registry").keep_tokenizer_of(files)

    def why_cold(self, words: Sequence[str]) -> str | None:
        """See `SharedImports`."""
        return None

    def why_renew(self) -> str | None:
        """See `SharedImports`."""
        return None
