"""Code of others that vLLM runs before it has imported all of its modules, and that changes its answers.

Each member of `MEMBERS` is another way in which vLLM comes to such code. Most of them replace `get_rope`,
which vLLM's models import by name. This has an effect only before the import of the model's module. On CPU,
the code of a model's configuration runs early in the engine only, so it replaces a name for the scheduler.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

NAMES: Final = "NAMES_OF_OTHERS_CODE"
"""The variable with the file to which each process appends what vLLM had imported when the code ran."""

INSPECTION: Final = "ModelInspection"
"""Reads attributes of the model's class, on which the order of imports has no effect."""

_PATCH: Final = """
import json, multiprocessing, os, sys

_is_noted = []

def note():
    if not _is_noted:
        _is_noted.append(True)
        name = multiprocessing.current_process().name
        if "registry" in sys.argv[0]:  # plain vLLM inspects a model's class in a program of its own
            name = "ModelInspection"
        modules = [each for each in list(sys.modules) if each.startswith("vllm.")]
        with open(os.environ["NAMES_OF_OTHERS_CODE"], "a") as file:
            file.write(json.dumps([name, modules]) + "\\n")

def patch():
    note()
    import vllm.model_executor.layers.rotary_embedding as module
    change(module)

def change(module):
    get_rope = module.get_rope
    def without_positions(*args, **kwargs):
        rope = get_rope(*args, **kwargs)
        half = rope.cos_sin_cache.shape[-1] // 2
        rope.cos_sin_cache[..., :half] = 1.0
        rope.cos_sin_cache[..., half:] = 0.0
        return rope
    module.get_rope = without_positions
"""
_WORKER: Final = "from vllm.v1.worker.cpu_worker import CPUWorker\nclass Worker(CPUWorker):\n    pass\n"


@dataclass(frozen=True)
class Member:
    """One way to such code: files in a folder on PYTHONPATH, arguments, and variables."""

    files: Mapping[str, str]
    arguments: tuple[str, ...] = ()
    group: str = ""
    """The group of the entry point `own = own:install`. Empty: there is none."""
    has_effect: bool = True
    """Whether plain vLLM runs the code before it imports the model."""
    environment: Mapping[str, str] = field(default_factory=dict)
    model_code: Mapping[str, str] = field(default_factory=dict)
    """Files of the model's own code, which `configuration_own.OwnConfig` begins."""

    def model(self, model: Path, folder: Path) -> Path:
        """The model to serve: with code of its own, a copy in the folder."""
        if not self.model_code:
            return model
        own = Path(shutil.copytree(model, folder / "model"))
        config = json.loads((own / "config.json").read_text())
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
        (own / "config.json").write_text(json.dumps(config))
        for name, text in self.model_code.items():
            (own / name).write_text(text)
        return own

    def write(self, folder: Path) -> dict[str, str]:
        """Writes the files. Returns the variables of a server with this code."""
        folder.mkdir(parents=True)
        for name, text in {"patching.py": _PATCH, **self.files}.items():
            (folder / name).write_text(text)
        if self.group:
            installed = folder / "own-1.0.dist-info"
            installed.mkdir()
            (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
            (installed / "entry_points.txt").write_text(f"[{self.group}]\nown = own:install\n")
        return {"PYTHONPATH": str(folder), NAMES: str(folder / "names"), **self.environment}


def imported_before(names: Path) -> dict[str, set[str]]:
    """Which modules of vLLM each process had imported when the code ran, from the file of `NAMES`."""
    imported: dict[str, set[str]] = {}
    for line in names.read_text().splitlines() if names.exists() else ():
        process, modules = json.loads(line)
        imported.setdefault(process, set(modules))
    return imported


MEMBERS: Final = {
    "general plugin": Member(
        {"own.py": "import patching\ndef install(): patching.patch()\n"}, group="vllm.general_plugins"
    ),
    "plugin with a model": Member(
        {
            "own.py": "import patching\n"
            "def install():\n"
            "    patching.note()\n"
            "    from vllm import ModelRegistry\n"
            "    ModelRegistry.register_model('LlamaForCausalLM', 'own_model:Model')\n",
            "own_model.py": "from vllm.model_executor.models.llama import LlamaForCausalLM\n"
            "class Model(LlamaForCausalLM):\n"
            "    def compute_logits(self, *args, **kwargs):\n"
            "        return -super().compute_logits(*args, **kwargs)\n",
        },
        group="vllm.general_plugins",
    ),
    "plugin that sets a variable": Member(
        {
            "own.py": "import multiprocessing, os, patching\n"
            "def install():\n"
            "    if multiprocessing.current_process().name == 'MainProcess':\n"
            "        os.environ['OWN_PATCH'] = '1'\n"
            "    if os.environ.get('OWN_PATCH'): patching.patch()\n"
        },
        group="vllm.general_plugins",
    ),
    "platform plugin": Member(
        {
            "own.py": "def install(): return 'own_platform.Platform'\n",
            "own_platform.py": "from vllm.platforms.cpu import CpuPlatform\n"
            "class Platform(CpuPlatform):\n"
            "    @classmethod\n"
            "    def check_and_update_config(cls, vllm_config):\n"
            "        super().check_and_update_config(vllm_config)\n"
            "        vllm_config.parallel_config.worker_cls = 'own_worker.Worker'\n",
            "own_worker.py": f"import patching\npatching.patch()\n{_WORKER}",
        },
        group="vllm.platform_plugins",
    ),
    "worker's class": Member(
        {"own_worker.py": f"import patching\npatching.patch()\n{_WORKER}"}, ("--worker-cls", "own_worker.Worker")
    ),
    "connector": Member(
        {
            "own_connector.py": "import patching\npatching.patch()\n"
            "from vllm.distributed.kv_transfer.kv_connector.v1.example_connector import ExampleConnector\n"
            "class Connector(ExampleConnector): pass\n"
        },
        (
            "--kv-transfer-config",
            '{"kv_connector": "Connector", "kv_connector_module_path": "own_connector", "kv_role": "kv_both", '
            '"kv_connector_extra_config": {"shared_storage_path": "kv"}}',
        ),
        has_effect=False,
    ),
    "logits processor": Member(
        {
            "own.py": "import patching\npatching.patch()\n"
            "from vllm.v1.sample.logits_processor import LogitsProcessor\n"
            "class install(LogitsProcessor):\n"
            "    def __init__(self, vllm_config, device, is_pin_memory): pass\n"
            "    def is_argmax_invariant(self): return False\n"
            "    def update_state(self, batch_update): pass\n"
            "    def apply(self, logits): return -logits\n"
        },
        group="vllm.logits_processors",
    ),
    "configuration of the model": Member(
        {},
        ("--trust-remote-code",),
        model_code={
            "configuration_own.py": "from importlib import import_module\n"
            "from transformers import LlamaConfig\n"
            "import_module('patching').note()\n"
            "import vllm.v1.core.sched.utils as utils\n"
            "check_stop = utils.check_stop\n"
            "utils.check_stop = lambda request, limit: check_stop(request, request.num_prompt_tokens + 3)\n"
            "class OwnConfig(LlamaConfig):\n"
            "    model_type = 'own'\n"
        },
    ),
    "sitecustomize": Member(
        {
            "sitecustomize.py": "import sys, patching\n"
            "class Finder:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name != 'vllm.model_executor.layers.rotary_embedding': return None\n"
            "        sys.meta_path.remove(self)\n"
            "        from importlib.util import find_spec\n"
            "        spec = find_spec(name)\n"
            "        execute = spec.loader.exec_module\n"
            "        def execute_and_change(module):\n"
            "            execute(module)\n"
            "            patching.change(module)\n"
            "        spec.loader.exec_module = execute_and_change\n"
            "        return spec\n"
            "sys.meta_path.insert(0, Finder())\n"
        }
    ),
}
