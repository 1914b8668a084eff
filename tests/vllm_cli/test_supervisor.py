"""The supervisor of a server command stops the server, whenever it is asked to."""

import json
import os
import signal
import subprocess
import sys

from tests.e2e.stop_point import StopPoint
from vllm_cli import supervisor


def test_a_sigterm_while_the_server_is_started_stops_it(tmp_path):
    stop = StopPoint(tmp_path, "subprocess.Popen", "")
    words = [sys.executable, supervisor.__file__, "1"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, env={**os.environ, **stop.environment}) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(["sleep", "600"]).encode() + b"\n")
        process.stdin.flush()
        stopped = stop.wait_stopped()
        process.send_signal(signal.SIGTERM)
        stopped.resume()
        assert process.wait(60) == 128 + signal.SIGTERM  # the server's status


def test_a_parent_that_ends_before_it_names_a_command_is_no_error():
    words = [sys.executable, "-I", supervisor.__file__, "1"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
