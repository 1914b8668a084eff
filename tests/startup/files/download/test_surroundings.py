"""Variables that keep the hub's client from the hub are named with their values, but without logins."""

from pathlib import Path

import pytest

from startup.files.model.hub_settings import describe_variables, proxies_of, unusable_certificates
from tests.support.cli import run_cli

_CLOSED = "127.0.0.1:9"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"SSL_CERT_FILE": "/no.pem"}, "SSL_CERT_FILE=/no.pem"),
        ({"SSL_CERT_FILE": "/etc/passwd"}, "SSL_CERT_FILE=/etc/passwd"),
        ({"HTTPS_PROXY": f"http://u:secret@{_CLOSED}"}, f"HTTPS_PROXY=http://********@{_CLOSED}"),
        ({"https_proxy": f"u:secret@{_CLOSED}"}, f"https_proxy=********@{_CLOSED}"),
        ({"ALL_PROXY": f"http://u:secret@{_CLOSED}"}, f"ALL_PROXY=http://********@{_CLOSED}"),
        ({"ALL_PROXY": f"socks5://u:secret@{_CLOSED}"}, f"ALL_PROXY=socks5://********@{_CLOSED}"),
        ({"HTTP_PROXY": "htp://x"}, "HTTP_PROXY=htp://x"),
        ({"HTTPS_PROXY": "http://x:bad"}, "HTTPS_PROXY=http://x:bad"),
        ({"HF_ENDPOINT": f"http://{_CLOSED}"}, f"HF_ENDPOINT=http://{_CLOSED}"),
        ({"HF_ENDPOINT": "hub.example"}, "HF_ENDPOINT=hub.example"),
        ({"HF_ENDPOINT": "https://x:bad"}, "HF_ENDPOINT=https://x:bad"),
        ({"HF_TOKEN_PATH": "/etc"}, "HF_TOKEN_PATH=/etc"),
        ({"HF_HOME": "/proc/none", "HF_HUB_CACHE": ""}, "HF_HOME=/proc/none"),
        ({"HF_HUB_CACHE": "/proc/none"}, "HF_HUB_CACHE=/proc/none"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("flags", [("--preflight-only",), ()], ids=["preflight", "start"])
def test_a_variable_is_named_before_the_start_and_by_the_start(variables, told, flags, tmp_path):
    given = {"HF_HOME": str(tmp_path), "VLLM_CACHE_ROOT": str(tmp_path), "VCLI_STANDBY": "off", **variables}
    done = run_cli("serve", "org/m", "--engine", "embedded", "--port", "0", *flags, environment=given)
    said = done.stdout + done.stderr
    assert done.returncode == 3, said
    assert told in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("value", "shown"),
    [("http://u:p@h:1", "http://********@h:1"), ("u:p@h:1", "********@h:1"), ("socks5h://u@h", "socks5h://********@h")],
)
def test_a_login_is_hidden_with_and_without_a_scheme(value, shown, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", value)
    assert describe_variables(["HTTPS_PROXY", "NOT_SET"]) == f"HTTPS_PROXY={shown}"


@pytest.mark.parametrize(
    ("variables", "url", "names"),
    [
        ({"HTTPS_PROXY": "a", "https_proxy": "b"}, "https://h/x", ["https_proxy"]),
        ({"HTTPS_PROXY": "a", "ALL_PROXY": "b"}, "http://h", ["ALL_PROXY"]),
        ({"HTTPS_PROXY": "a", "NO_PROXY": "h"}, "https://h", []),
        ({}, "https://h", []),
    ],
)
def test_the_proxy_of_an_address(variables, url, names, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert [*proxies_of(url)] == names


def test_certificates_that_cannot_be_used(monkeypatch, tmp_path: Path):
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, "/no.pem")
    assert [name for name, _ in unusable_certificates()] == [
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
    ]
    for name in ("SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", "")
    assert [*unusable_certificates()] == []
