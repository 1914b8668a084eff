"""The command `vllm-cli prefetch`: report and progress. `test_prefetch_downloads.py` has exit codes."""

import json
import subprocess
from unittest.mock import Mock

import pytest

from startup.files.prefetch.messages import PrefetchProgress, PrefetchReport
from tests.support.cli import run_python
from tests.support.page_cache import evict, expect_read, held
from vllm_cli.commands import prefetch as command

MIB = 1 << 20
RUN = "import sys; from vllm_cli.commands.prefetch import prefetch; sys.exit(prefetch(standalone_mode=False))"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return run_python(RUN, *words)


@pytest.mark.alone
def test_the_model_is_resident_after_the_command_and_the_report_says_what_was_read(tmp_path, make_file):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    weights = make_file("model.safetensors", 4)
    evict(weights)
    result = run(tmp_path, "--threads", "2")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("prefetch done: 0.00 GB in 3 files, 0% resident before, 0.00 GB read in")
    expect_read(weights)
    evict(weights)
    report = json.loads(run(tmp_path, "--json").stdout)
    assert (report["state"], report["read_bytes"]) == ("done", 4 * MIB)
    assert report["resident_share"] < 0.01
    assert report["gb_per_s"] > 0
    with held(weights):
        again = json.loads(run(tmp_path, "--json").stdout)
    assert (again["state"], again["resident_share"]) == ("off", 1.0)


def test_progress_is_printed_as_lines_without_a_terminal(capsys):
    handle = Mock(result=lambda: PrefetchReport("done"), progress=lambda: [PrefetchProgress(10**9, 4 * 10**9, 5.0)])
    command._follow(handle, command.Reporter(interval_s=0.0))
    assert capsys.readouterr().err == "prefetch [#####---------------]  25% 1.00 of 4.00 GB, 0.20 GB/s, 15 s left\n"
