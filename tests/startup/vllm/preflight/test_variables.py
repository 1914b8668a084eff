"""Variables: values that vLLM cannot parse are errors, names that it does not know are warnings."""

import pytest

from startup.vllm.preflight.surroundings import variable_findings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VLLM_PORT", "8000"),
        ("VLLM_IS_ON", "0"),
        ("VLLM_LENIENT", ""),
        ("VLLM_PRECISION", "HIGH"),
        ("VLLM_ROUTER_PORT", "tcp://10.0.0.1:80"),
        ("VLLM_ROUTER_SERVICE_HOST", "10.0.0.1"),
        ("https_proxy", "http://proxy:3128"),
    ],
)
def test_good_values(facts, monkeypatch, name, value):
    before = list(variable_findings(facts))
    monkeypatch.setenv(name, value)
    assert list(variable_findings(facts)) == before


@pytest.mark.parametrize(
    ("name", "value", "severity", "message"),
    [
        (
            "VLLM_PORT",
            "tcp://10.0.0.1:80",
            "error",
            "a service called vllm; rename the service, or give the pod enable",
        ),
        ("VLLM_IS_ON", "yes", "error", "VLLM_IS_ON must be a whole number, got 'yes'"),
        ("VLLM_LOG_INTERVAL", "often", "error", "VLLM_LOG_INTERVAL must be a number, got 'often'"),
        ("VLLM_PRECISION", "low", "error", "VLLM_PRECISION must be one of highest, high, got 'low'"),
        ("VLLM_PRECISON", "high", "warning", "does not read VLLM_PRECISON (did you mean 'VLLM_PRECISION'?)"),
        ("https_proxy", "proxy", "warning", "https_proxy is no address"),
    ],
)
def test_faults(facts, monkeypatch, name, value, severity, message):
    before = set(variable_findings(facts))
    monkeypatch.setenv(name, value)
    (finding,) = set(variable_findings(facts)) - before
    assert finding.severity == severity
    assert message in finding.message
