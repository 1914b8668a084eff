"""Preloads the engine's modules when the forkserver imports this module. No other process imports it.

The import itself does the work, because a forked child inherits imported modules. The forkserver imports this
module on its main thread before it forks the engine, while the API process works on another core.
"""

import importlib
import os
import time
from contextlib import suppress

from base.machine.processes import process_start_ns
from envs.registry import env
from startup.imports.heavy import import_engine
from startup.logs.setup import configure_logging, log_options_of_environment
from startup.processes import death_pipe, group_signals
from startup.processes.forkserver import install

_BEGIN_NS = time.monotonic_ns()
_PID = os.getpid()

group_signals.ignore()
# A child ends with the forkserver, because only that can report its exit code.
install(begin=lambda texts, fds: death_pipe.follow_parent(_PID))
configure_logging(log_options_of_environment(), role="forkserver", phase=lambda: "preload_imports")
LEFT_OUT = import_engine()
"""Stand-ins for modules that serving never uses. The engine process removes them once the model is built."""
importlib.import_module("startup.embedded.engine_process")  # has the child's main function
if (model_class := env.VCLI_PRELOAD_MODULE.get()) is not None:
    with suppress(Exception):  # a faulty module is reported when the model is loaded
        importlib.import_module(model_class)

SPANS = [
    ("forkserver:interpreter", process_start_ns(), _BEGIN_NS),
    ("forkserver:preload_imports", _BEGIN_NS, time.monotonic_ns()),
]
"""Phases of the preload. The engine process adds them to the start's timeline if this module was imported."""
