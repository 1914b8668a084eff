"""What the launcher imports while the engine loads changes nothing but `sys.modules`.

vLLM imports these modules later. A library that sets up logging or variables in its import would do so before
the warnings of the start, and vLLM undoes some of this only around its own import.
"""

import json
import subprocess

import pytest

from startup.vllm.vllm_imports import LATER_MODULES
from tests.support.peer_vllm import PYTHON, ROOT

pytestmark = [pytest.mark.versions, pytest.mark.ci_vllm]

_STATE_OF_EACH = """
import contextlib, importlib, json, locale, logging, os, signal, socket, sys, threading, warnings
from startup.vllm.vllm_imports import API_MODULES, LATER_MODULES

def state():
    loggers = {name: logging.getLogger(name) for name in ("", "vllm", "uvicorn", "transformers", "asyncio")}
    return {
        "loggers": {name: [each.level, list(map(str, each.handlers))] for name, each in loggers.items()},
        "handlers": [handler.level for each in loggers.values() for handler in each.handlers],
        "disabled": logging.root.manager.disable,
        "variables": dict(os.environ),
        "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "filters": list(map(str, warnings.filters)),
        "timeout": socket.getdefaulttimeout(),
        "hooks": list(map(str, (sys.excepthook, sys.unraisablehook, threading.excepthook))),
        "paths": sys.path[:],
        "locale": locale.setlocale(locale.LC_ALL),
        "folder": os.getcwd(),
        "limit": sys.getrecursionlimit(),
    }

for name in API_MODULES:
    importlib.import_module(name)
changed = {}
for name in sys.argv[1:]:
    before = state()
    with contextlib.suppress(ImportError):  # this version has no such module
        importlib.import_module(name)
    if parts := [part for part, value in state().items() if value != before[part]]:
        changed[name] = parts
print("\\n" + json.dumps(changed))
"""


def _changes(*modules: str) -> dict[str, list[str]]:
    """The modules whose import changes the process's state, with the changed parts."""
    command = [PYTHON, "-c", _STATE_OF_EACH, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    changes: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return changes


def test_no_later_module_changes_the_state_of_the_process():
    assert _changes(*LATER_MODULES) == {}


def test_a_library_that_sets_up_logging_is_seen():
    changes = _changes("model_hosting_container_standards.sagemaker")
    assert "loggers" in changes["model_hosting_container_standards.sagemaker"]
