"""Forks take over a process's present state, draw different random numbers, and use their own variables."""

import json
import os
import subprocess

import pytest

from startup.processes import state
from tests.support.cli import run_python
from tests.support.peer_vllm import PYTHON, ROOT, needs_vllm

pytestmark = pytest.mark.thorough

_FORKS = """
import json, os, sys
import multiprocessing, random, tempfile, time, uuid
import numpy, torch
import transformers.utils.hub as hub
from startup.processes import state

def drawn():
    return {"random": random.random(), "numpy": numpy.random.rand(), "torch": torch.rand(1).item(),
            "seed": torch.initial_seed(), "uuid4": str(uuid.uuid4()), "session": hub.SESSION_ID,
            "name": next(tempfile._get_candidate_names()),
            "key": bytes(multiprocessing.current_process().authkey).hex()}

def folder_and_zone():
    return {"folder": tempfile.gettempdir(), "zone": time.tzname[0]}

drawn(), folder_and_zone()
for _ in range(2):
    if (pid := os.fork()) == 0:
        changed = {"TZ": "XYZ-3", "TMPDIR": sys.argv[1]}
        os.environ.update(changed)
        state.refresh_libraries(changed)
        threads = len(os.listdir("/proc/self/task"))
        print(json.dumps(drawn() | folder_and_zone() | {"threads": threads}), flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_what_a_sandbox_hides_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(state, "read_text", lambda path: "")
    before = os.umask(0o077)
    state.inherit(os.getpid(), 0)
    assert os.umask(before) == 0o077


def test_forks_draw_different_numbers_and_refresh_their_settings_without_a_thread(tmp_path):
    """With a second thread, a further fork would copy a process with several threads."""
    result = run_python(_FORKS, tmp_path)
    assert result.returncode == 0, result.stderr
    forks = [json.loads(line) for line in result.stdout.splitlines()]
    for fork in forks:
        assert (fork.pop("zone"), fork.pop("folder"), fork.pop("threads")) == ("XYZ", str(tmp_path), 1)
    first, second = forks
    assert [source for source in first if first[source] == second[source]] == []


@pytest.mark.slow
@needs_vllm
def test_the_log_of_older_vllm_follows_the_environment():
    """Older versions of vLLM call on import the function that this script calls."""
    code = (
        "import logging, os, vllm.logger\n"
        "from startup.processes.state import refresh_libraries\n"
        "vllm.logger._configure_vllm_root_logger()\n"
        "os.environ.update(VLLM_LOGGING_LEVEL='DEBUG', VLLM_LOGGING_COLOR='1')\n"
        "refresh_libraries({'VLLM_LOGGING_LEVEL': 'DEBUG'})\n"
        "logger = logging.getLogger('vllm')\n"
        "print(logger.level, type(logger.handlers[0].formatter).__name__, len(logger.handlers))\n"
    )
    result = subprocess.run([PYTHON, "-c", code], text=True, capture_output=True, cwd=ROOT, check=True)
    assert result.stdout.split()[-3:] == ["10", "ColoredFormatter", "1"]
