"""A limit of processes and threads without room for a start is told before it, however it is set."""

import os
import subprocess
from pathlib import Path

import pytest

from startup.session.task_room import check_task_room
from tests.support.cli import CLI, run_python

_PIDS = Path("/sys/fs/cgroup/pids")
_CODE = "VC-TOO-MANY-PROCESSES"


@pytest.mark.parametrize("engine", ["embedded", "vllm"])
def test_without_a_low_limit_nothing_is_reported(engine):
    check_task_room(engine)


_LIMITED = """
import os, resource, sys
from startup.errors import StartupError
from startup.session.task_room import check_task_room
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
if os.getuid() == 0:
    os.setuid(54321)  # root has no such limit
try:
    check_task_room("embedded")
except StartupError as err:
    print(err.cause, err)
"""


@pytest.mark.parametrize("limit", [1, 900])
def test_a_limit_of_a_user_s_processes_is_tried_out(limit):
    done = run_python(_LIMITED, str(limit))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("too-many-processes the limit of processes and threads is too low: ") == (limit == 1)


@pytest.mark.skipif(not os.access(_PIDS, os.W_OK), reason="needs the pids controller of cgroups, version 1, as root")
@pytest.mark.parametrize("limit", [3, 7, 10])
def test_a_cgroup_s_limit_ends_a_start_with_one_cause(limit, tiny_llama):
    cgroup = _PIDS / f"vllm-cli-test-{os.getpid()}"
    cgroup.mkdir()
    try:
        (cgroup / "pids.max").write_text(str(limit))
        enter = f'echo $$ >{cgroup}/cgroup.procs; exec "$@"'
        command = ["sh", "-c", enter, "sh", *CLI, "serve", str(tiny_llama), "--port", "0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    finally:
        cgroup.rmdir()
    assert done.returncode == 3
    assert done.stderr.count(_CODE) == 1
    assert "Raise `ulimit -u`" in done.stderr
    assert "Traceback" not in done.stderr
