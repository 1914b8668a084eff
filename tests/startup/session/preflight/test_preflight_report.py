"""The report has all faults as text and JSON. The checks import nothing heavy and read no weights."""

import json
import re

import pytest

from startup.session.preflight.all_checks import PreflightOptions, run_preflight
from tests.startup.session.preflight.conftest import ROOMY
from tests.support.cli import python_output

BUDGET = """
import sys
from vllm_cli.commands.serve import serve
serve.main([sys.argv[1], "--engine", "embedded", "--preflight-only", "--port", "0"], standalone_mode=False)
heavy = {"torch", "transformers", "tokenizers", "safetensors", "numpy", "huggingface_hub", "urllib.request", "ssl"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


@pytest.mark.thorough
def test_preflight_of_a_local_model_imports_nothing_heavy(model_path):
    assert "for the weights" in python_output(BUDGET, model_path)


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
    (finding,) = run_preflight(make_config(model_path), options=options).warnings
    assert finding.severity == "warning"
    assert "this check could not be done: TypeError" in finding.message
