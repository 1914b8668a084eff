"""Each rule of deploy/grafana/alerts.yaml fires for its figures. No rule fires for a healthy server."""

import json
import subprocess
from pathlib import Path

import yaml

from tests.support.debian_tools import require_tool

ALERTS = Path(__file__).parents[2] / "deploy" / "grafana" / "alerts.yaml"
RULES = {rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}
WHERE = 'job="j", instance="i"'
ROUTER = f'{WHERE}, model="m"'

READY = {f"vllm:num_requests_running{{{WHERE}}}": "0+0x60", f'vllm_cli:start_info{{{WHERE}, compile=""}}': "1+0x60"}
HEALTHY = {
    **READY,
    f"vllm_cli:engine_up{{{WHERE}}}": "1+0x60",
    f"vllm_cli:cuda_graphs_captured{{{WHERE}}}": "9+0x60",
    f"vllm_cli:cuda_graphs_total{{{WHERE}}}": "9+0x60",
    f"vllm_cli:cuda_graphs_given_up{{{WHERE}}}": "0+0x60",
    f"vllm_cli:engine_silence_seconds{{{WHERE}}}": "1+0x60",
    f'vllm_cli:start_phase_seconds{{{WHERE}, phase="total"}}': "9+0x60",
    f'vllm_cli:start_phase_seconds{{{WHERE}, phase="api:imports"}}': "400+0x60",
    f"vllm_cli:model_last_start_seconds{{{ROUTER}}}": "9+0x60",
    f'vllm_cli:model_state{{{ROUTER}, state="failed"}}': "0+0x60",
    f'vllm_cli:router_starts_total{{{ROUTER}, outcome="failed"}}': "1+0x60",
    f'vllm_cli:router_refusals_total{{{ROUTER}, reason="no_room"}}': "3+0x60",
    f'vllm_cli:router_requests_total{{{ROUTER}, status="2xx"}}': "0+600x60",
    f'vllm_cli:router_requests_total{{{ROUTER}, status="5xx"}}': "0+1x60",
    f'vllm:admission_rejections_total{{{WHERE}, model_name="m", reason="max_num_queued_reqs"}}': "0+0x60",
}
COMPILED = f'vllm_cli:start_info{{{WHERE}, compile="compiled", compile_reason='
FIRING = {
    "VllmCliServerNotReady": [
        {f"vllm_cli:start_info{{{WHERE}}}": "1+0x60"},
        {f"vllm_cli:engine_up{{{WHERE}}}": "0+0x60"},
    ],
    "VllmCliEngineSilent": [{f"vllm_cli:engine_silence_seconds{{{WHERE}}}": "0+60x60"}],
    "VllmCliStartSlow": [
        {f'vllm_cli:start_phase_seconds{{{WHERE}, phase="total"}}': "400+0x60"},
        {f"vllm_cli:model_last_start_seconds{{{ROUTER}}}": "400+0x60"},
    ],
    "VllmCliModelCompiledAgain": [READY | {COMPILED + '"variables VLLM_HOST_IP"}': "1+0x60"}],
    "VllmCliRequestsRefused": [
        {f'vllm_cli:router_refusals_total{{{ROUTER}, reason="overloaded"}}': "0+2x60"},
        {f'vllm:admission_rejections_total{{{WHERE}, model_name="m", reason="max_num_queued_reqs"}}': "0+2x60"},
    ],
    "VllmCliModelFailing": [
        {f'vllm_cli:model_state{{{ROUTER}, state="failed"}}': "1+0x60"},
        {f'vllm_cli:router_starts_total{{{ROUTER}, outcome="failed"}}': "0+1x60"},
    ],
    "VllmCliStartPlain": [READY | {f'vllm_cli:start_info{{{WHERE}, start_mode="plain"}}': "1+0x60"}],
    "VllmCliCudaGraphsIncomplete": [{f"vllm_cli:cuda_graphs_given_up{{{WHERE}}}": "3+0x60"}],
    "VllmCliCudaGraphsLate": [
        {f"vllm_cli:cuda_graphs_captured{{{WHERE}}}": "2+0x60", f"vllm_cli:cuda_graphs_total{{{WHERE}}}": "9+0x60"}
    ],
    "VllmCliRouterErrors": [
        {f'vllm_cli:router_requests_total{{{ROUTER}, status="{status}"}}': "0+9x60" for status in ("2xx", "5xx")}
    ],
}
QUIET = [HEALTHY, READY | {COMPILED + '"/root/.cache has no compiled model for it yet (VLLM_CACHE_ROOT)"}': "1+0x60"}]


def test_there_are_figures_for_each_rule():
    assert FIRING.keys() == RULES.keys()


def test_the_rules_fire_for_these_figures_and_no_others(tmp_path):
    promtool = require_tool("promtool")
    cases = [(name, series) for name, several in FIRING.items() for series in several]
    cases += [("", series) for series in QUIET]
    suite = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [_case(*each) for each in cases]}
    file = tmp_path / "alerts_test.json"  # JSON is YAML, too
    file.write_text(json.dumps(suite))
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _case(firing: str, series: dict[str, str]) -> dict[str, object]:
    """A test case: after half an hour, the rule `firing` fires. If it is empty, no rule fires."""
    samples = [{"labels": f'{{alertname="{firing}"}}', "value": 1}] if firing else []
    query = 'count by (alertname) (ALERTS{alertstate="firing"})'
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": query, "eval_time": "30m", "exp_samples": samples}],
    }
