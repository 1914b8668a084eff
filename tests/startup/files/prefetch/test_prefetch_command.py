"""The command `vllm-cli prefetch`: report, progress and exit codes."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from startup.files.prefetch.messages import PrefetchProgress, PrefetchReport
from startup.words.param_types import SIZE
from tests.support.cli import run_python
from tests.support.page_cache import evict, expect_read, held
from vllm_cli import terminal
from vllm_cli.commands import prefetch as command
from vllm_cli.commands.prefetch import prefetch

MIB = 1 << 20

MakeFile = Callable[..., Path]

RUN = "import sys; from vllm_cli.commands.prefetch import prefetch; sys.exit(prefetch(standalone_mode=False))"


@pytest.fixture
def model(tmp_path: Path, make_file: MakeFile) -> Path:
    """The folder of a model with cold weights."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    make_file("model.safetensors", 4, is_cold=True)
    return tmp_path


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return run_python(RUN, *words)


@pytest.mark.alone
def test_the_model_is_resident_after_the_command(model):
    evict(model / "model.safetensors")
    result = run(str(model), "--threads", "2")
    assert result.returncode == 0
    assert result.stdout.startswith("prefetch done: 0.00 GB in 3 files, 0% resident before, 0.00 GB read in")
    assert result.stderr == ""
    expect_read(model / "model.safetensors")


@pytest.mark.alone
def test_report_as_json_has_bytes_share_and_rate(model):
    evict(model / "model.safetensors")
    report = json.loads(run(str(model), "--json").stdout)
    assert report["state"] == "done"
    assert report["read_bytes"] == 4 * MIB
    assert report["resident_share"] < 0.01
    assert report["gb_per_s"] > 0
    with held(model / "model.safetensors"):
        again = json.loads(run(str(model), "--json").stdout)
    assert (again["state"], again["resident_share"]) == ("off", 1.0)


def test_progress_is_printed_as_lines_without_a_terminal(capsys, monkeypatch):
    now_s = 100.0
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: now_s))

    class Handle:
        def progress(self) -> Iterator[PrefetchProgress]:
            nonlocal now_s
            yield PrefetchProgress(0, 4 * 10**9, 0.05)
            now_s += 0.02
            yield PrefetchProgress(10**9, 4 * 10**9, 5.0)

        def result(self) -> PrefetchReport:
            return PrefetchReport("done")

    command._follow(Handle(), command.Reporter(interval_s=0.01))  # type: ignore[arg-type]
    assert capsys.readouterr().err == "prefetch [#####---------------]  25% 1.00 of 4.00 GB, 0.20 GB/s, 15 s left\n"


def test_an_invalid_value_is_a_usage_error():
    result = CliRunner().invoke(prefetch, ["--threads", "0"])
    assert result.exit_code == 2
    assert "0 is not in the range 1<=x<=64" in result.output


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("16MiB", 16 << 20),
        ("16M", 16 << 20),
        ("16mb", 16_000_000),
        ("1.5 GiB", 3 << 29),
        ("4096", 4096),
        ("4096B", 4096),
    ],
)
def test_sizes_are_accepted_with_units(text, num_bytes):
    assert SIZE.convert(text, None, None) == num_bytes
