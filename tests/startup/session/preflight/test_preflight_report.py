"""The report has all faults as text and JSON. The checks import nothing heavy and read no weights."""

import json
import re
import socket
from collections.abc import Callable

from base.machine.memory import MemoryState
from startup.session.preflight.all_checks import PreflightOptions, run_preflight
from startup.session.preflight.report import PreflightReport
from tests.startup.session.preflight.conftest import CONFIG
from tests.support.cli import python_output
from tests.support.page_cache import counting_bytes_read

MIB = 1 << 20
ROOMY = MemoryState(64 << 30, 64 << 30)

Preflight = Callable[..., PreflightReport]

BUDGET = """
report = run_preflight(config, options=options)
assert not report.errors, report.to_text()
heavy = {"torch", "transformers", "tokenizers", "safetensors", "numpy", "huggingface_hub", "urllib.request", "ssl"}
print(*sorted(heavy & set(sys.modules)))
"""


def test_faults_of_every_kind_are_reported_at_once(folder, preflight, monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "thread")
    folder.shards[0].unlink()
    with folder.shards[1].open("r+b") as file:
        file.truncate(300)
    folder.shards[2].write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    (folder.path / "tokenizer.json").write_text("{")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        report = preflight(
            folder.path,
            host="127.0.0.1",
            port=taken.getsockname()[1],
            max_model_len=1 << 20,
            ssl_certfile="/no/cert",
            generation_config="/no/folder",
            shm=tmp_path / "none",
        )
    assert {f.check for f in report.errors} == {
        "environment",
        "port",
        "tls",
        "shards",
        "weights",
        "lfs",
        "json",
        "generation_config",
        "max_model_len",
        "shm",
    }


def test_preflight_of_the_real_model_reads_only_headers_and_small_files(model_path, preflight):
    with counting_bytes_read() as read:
        assert preflight(model_path).errors == ()
    small = sum(path.stat().st_size for path in model_path.iterdir() if path.suffix != ".safetensors")
    assert read.num_bytes < 3 * small + MIB
    assert read.num_bytes < sum(path.stat().st_size for path in model_path.glob("*.safetensors")) / 10


def test_preflight_of_a_local_model_imports_nothing_heavy(model_path):
    assert python_output(CONFIG + BUDGET, model_path).strip() == ""


def test_json_contains_findings_and_the_duration_of_each_group(preflight):
    content = json.loads(preflight("/no/such/model").to_json())
    assert content["schema"] == 1
    assert content["ok"] is False
    assert content["findings"][0]["check"] == "model"
    assert content["findings"][0]["severity"] == "error"
    assert {"environment", "checkpoint", "memory"} <= {check["name"] for check in content["checks"]}


def test_text_has_a_line_per_finding_errors_first_and_a_summary(preflight, monkeypatch):
    monkeypatch.setenv("VCLI_NO_SUCH_THING", "1")
    lines = preflight("/no/such/model").to_text().splitlines()
    assert [line.split()[0] for line in lines] == ["error", "warning", "Preflight:"]
    assert re.fullmatch(r"Preflight: 1 error, 1 warning after \d+\.\d\d s", lines[-1])


def test_an_error_inside_a_check_is_a_warning(model_path, make_config):
    options = PreflightOptions(shm=42.5, memory=ROOMY)  # type: ignore[arg-type]
    (finding,) = run_preflight(make_config(model_path), options=options).findings
    assert finding.severity == "warning"
    assert "this check could not be done: TypeError" in finding.message
