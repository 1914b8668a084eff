"""`--log-format json`: vLLM's log records are JSON lines of its processes, whatever its version."""

import json

import pytest

pytestmark = pytest.mark.versions


def test_log_records_are_json_with_the_names_of_their_processes(start_vllm):
    with start_vllm("ours", "--log-format", "json") as server:
        server.wait_ready().generate()
        lines = server.log.splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    assert {record["role"] for record in records} >= {"launcher", "APIServer", "EngineCore", "Worker"}
    assert [line for line in lines if "INFO " in line and not line.startswith("{")] == []
    assert [line for line in lines if line.startswith("(EngineCore") or line.startswith("(Worker")] == []
