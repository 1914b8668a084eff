"""Imports the modules of vLLM's API server, engine and workers in a standby's template process.

A template process forks a server for each warm start. Starts with any flags can use it. Only starts that
compile need a template of their own, because they import torch's compiler at once. If code of others may
change vLLM's modules, such as a plugin, the template imports only what plain vLLM has imported before it.
"""

import gc
import importlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from base.wording import list_some
from envs.registry import env
from startup.errors import StartupError
from startup.files.model.file_plan import plan_files
from startup.files.model.model_request import ModelRequest
from startup.hook import place_only_for
from startup.imports.learned_imports import learn
from startup.processes.new_program import OWN_PACKAGES_MODULE
from startup.settings.serve_arguments import is_eager
from startup.vllm.fork.forkserver import forkserver_environment
from startup.vllm.fork.preload_plan import BEFORE_OTHERS_CODE, compiler_time, plan_preload, platform_modules
from startup.vllm.launch.plain_start import plain_start_reason
from startup.vllm.patches.compiler import CompilerTime, may_defer_compiler
from startup.vllm.patches.compiler_keys import fill_compiler_keys
from startup.vllm.patches.model_registry import inspect_models, model_modules
from startup.vllm.patches.placing import place_hooks
from startup.vllm.patches.process_titles import find_title_memory
from startup.vllm.patches.tokenizers import CachedTokenizers
from startup.vllm.start_kind import StartKind, earlier_starts
from startup.vllm.vllm_imports import LATER_MODULES, import_api_server, import_leniently, importing_vllm
from startup.vllm_arguments.foreign_code import foreign_code
from startup.vllm_arguments.installed import InstalledVllm, require_vllm
from startup.vllm_arguments.vllm_line import VllmLine
from startup.vllm_arguments.vllm_record import RecordFile

_MAX_STARTED_MODELS: Final = 2
"""Tokenizers are kept for this many recently started models, and for all models that the user names."""

_START: Final = "startup.vllm.launch.start"
_CODE: Final = f"import sys, {OWN_PACKAGES_MODULE}; from {__name__} import main; main(*sys.argv[1:])"


class TemplateImports:
    """Does the imports of one template process, and decides which starts can use the template."""

    def __init__(self, vllm: InstalledVllm, models: Sequence[str], *, is_eager: bool) -> None:
        """The classes of `models` are imported, too. An eager template is for starts that compile nothing."""
        self._vllm = vllm
        self._models = models
        self._is_eager = is_eager
        self._compiler: CompilerTime = compiler_time(is_eager=is_eager)
        self._tokenizers = CachedTokenizers()
        self._has_all = not foreign_code(VllmLine.of(()))
        """Whether the template has all of vLLM's modules, because no code of others changes them."""

    @property
    def variables(self) -> Mapping[str, str]:
        """Variables that a forkserver would get, because libraries read them when they are loaded.

        Variables that vLLM sets on import are left out, because a new program starts without them, too.
        """
        variables = forkserver_environment(self._vllm)
        own = self._vllm.folder / "env_override.py"
        source = own.read_text() if own.exists() else ""
        return {name: value for name, value in variables.items() if f'"{name}"' not in source}

    def run(self) -> None:
        """Imports all modules on the main thread.

        Raises:
            StartupError: the API server cannot be imported.
        """
        was_enabled = gc.isenabled()
        gc.disable()
        place_only_for(self._vllm.release)
        find_title_memory()
        place_hooks("template")
        models = self._folders()
        with importing_vllm(self._compiler, late_in=None):
            if self._has_all:
                self._import_all(models)
            else:
                import_leniently((*BEFORE_OTHERS_CODE, _START))
        if self._has_all:
            self._tokenizers.fill(models)
        if self._compiler == "now":
            fill_compiler_keys()
        if was_enabled:
            gc.enable()

    def _import_all(self, models: Sequence[Path]) -> None:
        failed = import_api_server((*LATER_MODULES, _START), is_lean=False)
        if failed:
            raise StartupError(f"vLLM cannot be imported: {failed}")
        import_leniently(platform_modules(self._vllm, is_eager=self._is_eager))
        for model in models:
            import_leniently(model_modules(model))

    def why_cold(self, line: VllmLine | None) -> str | None:
        """Why a server with this command line cannot use the template. None if it can use it.

        Called in each fork. `line` is None if the server will only report a fault of its arguments.
        """
        if (changed := self._tokenizers.changed()) is not None:
            return f"the standby's imports are out of date: {changed} has changed"
        try:
            return None if line is None else self._why_cold(line)
        except Exception as err:  # noqa: BLE001 - a cold start reports invalid arguments and variables
            return f"the settings are not understood: {err}"

    def why_renew(self) -> str | None:
        """Why the template is out of date: new models or changed files. None if it is not."""
        if (changed := self._tokenizers.changed()) is not None:
            return f"{changed} has changed"
        known = self._tokenizers.models
        new = [model for model in self._folders() if model not in known] if self._has_all else []
        if new and len(known) < len(self._models) + _MAX_STARTED_MODELS:
            return f"{new[0]} was started"
        return None

    def _why_cold(self, line: VllmLine) -> str | None:
        if (plain := plain_start_reason(self._vllm, line)) is not None:
            return f"vLLM starts without preloading: {plain.text}"
        if self._has_all and (code := foreign_code(line)):
            return f"the standby has imported modules that {list_some(code)} may change"
        method = env.VLLM_WORKER_MULTIPROC_METHOD.get()
        if method == "fork":
            return "with the start method fork, the model runs in a fork of the API server"
        if not may_defer_compiler(line, method) and self._compiler != "now":
            return "the model may run in the API server's process, which needs the compiler"
        return None

    def _folders(self) -> list[Path]:
        """The folders of the given models, and of the models in the latest starts."""
        located = (plan_files(ModelRequest(model=model, engine="vllm")).files for model in self._models)
        given = [files.path for files in located if files is not None]
        this = StartKind.of(self._vllm, (), None)
        usable = (each for each in earlier_starts() if each.kind.is_of_installation(this))
        latest = (Path(each.model) for each in usable if each.model and is_eager(each.kind.flags) == self._is_eager)
        started = [model for model in dict.fromkeys(latest) if model not in given and model.is_dir()]
        return [*given, *started[:_MAX_STARTED_MODELS]]


def learn_imports(vllm: InstalledVllm, line: VllmLine, *, folder: Path, environment: Mapping[str, str]) -> None:
    """Runs the imports of forkserver and API server in two programs. Makes vLLM inspect a model on disk, too.

    Raises CalledProcessError if vLLM cannot be imported here. `folder` is for temporary files.
    """
    model = line.model_folder
    plan = plan_preload(folder, vllm, line, in_order=bool(foreign_code(line)))
    variables = {**environment, env.VCLI_PRELOAD_PLAN.name: str(plan.write())}
    for role in ("forkserver", "api"):
        command = [sys.executable, "-c", _CODE, role, str(model or "")]
        subprocess.run(command, env=variables, check=True, capture_output=True, text=True)


def main(role: str, model: str) -> None:
    """The program that `learn_imports` runs once with the role `forkserver` and once with `api`."""
    if role == "forkserver":
        importlib.import_module("startup.vllm.fork.preload")  # its import does the work
        if model:
            inspect_models(model_modules(Path(model)))
    else:
        record_file = RecordFile(require_vllm())
        failed = import_api_server(LATER_MODULES)
        if failed:
            sys.exit("\n".join(f"{name}: {reason}" for name, reason in failed.items()))
        learn()
        record_file.update(imports_all=True)
