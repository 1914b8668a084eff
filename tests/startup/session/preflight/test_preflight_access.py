"""API keys and TLS files are checked in the way in which the server uses them."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import Certificate, encrypt_key, make_certificate, needs_openssl

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "good")


def findings(preflight, check: str, **given: Any) -> list[str]:
    """Severity and message of one check's findings."""
    report = preflight("/nowhere", **{name: str(v) if isinstance(v, Path) else v for name, v in given.items()})
    return [f"{f.severity}: {f.message}" for f in report.findings if f.check == check]


def tls(preflight, pair: Certificate, **given: Any) -> list[str]:
    return findings(preflight, "tls", **{"ssl_certfile": pair.certificate, "ssl_keyfile": pair.key} | given)


def test_certificate_and_key_may_be_in_one_file(preflight, pair, tmp_path):
    both = tmp_path / "both.pem"
    both.write_bytes(pair.key.read_bytes() + pair.certificate.read_bytes())
    both.chmod(0o600)
    assert tls(preflight, Certificate(both, both)) == []
    assert tls(preflight, pair, ssl_certfile=both, ssl_keyfile=None) == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"ssl_keyfile": "other.key"}, "error: --ssl-keyfile other.key is not the key of --ssl-certfile "),
        ({"ssl_ciphers": "ROT13"}, "error: --ssl-ciphers 'ROT13' names no cipher that OpenSSL supports"),
        (
            {"ssl_ca_certs": "other.crt"},
            "warning: --ssl-ca-certs has no effect as long as --ssl-cert-reqs is 0: set",
        ),
    ],
)
def test_what_a_certificate_does_not_fit_is_one_finding(preflight, pair, tmp_path, monkeypatch, given, told):
    monkeypatch.chdir(tmp_path)
    make_certificate(tmp_path, "other")
    [finding] = tls(preflight, pair, **given)
    assert finding.startswith(told)


@pytest.mark.parametrize("traditional", [True, False])
def test_an_encrypted_key_is_an_error_without_a_password_prompt(preflight, tmp_path, traditional):
    pair = make_certificate(tmp_path, "secret")
    encrypt_key(pair.key, traditional=traditional)
    [finding] = tls(preflight, pair)
    assert finding.startswith(f"error: --ssl-keyfile {pair.key} is encrypted")
    assert "openssl pkey" in finding


@pytest.mark.parametrize("content", [b"", b"\x30\x82 binary", b"-----BEGIN CERTIFICATE-----\nbroken\n"])
def test_a_file_without_a_certificate_is_an_error(preflight, pair, tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    [finding] = tls(preflight, pair, ssl_certfile=tmp_path / "file")
    assert finding.startswith(f"error: --ssl-certfile {tmp_path / 'file'}")
    [finding] = tls(preflight, pair, ssl_ca_certs=tmp_path / "file", ssl_cert_reqs=2)
    assert finding.startswith(f"error: --ssl-ca-certs {tmp_path / 'file'}")


def test_all_missing_tls_files_are_reported(preflight, tmp_path):
    missing = findings(preflight, "tls", ssl_keyfile=tmp_path / "key", ssl_certfile=tmp_path / "cert")
    assert [finding.split()[1] for finding in missing] == ["--ssl-keyfile", "--ssl-certfile"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"ssl_keyfile": "key"}, "--ssl-keyfile"),
        ({"ssl_ca_certs": "certificate", "ssl_cert_reqs": 2}, "--ssl-ca-certs"),
        ({"ssl_ciphers": "HIGH"}, "--ssl-ciphers HIGH"),
        ({"enable_ssl_refresh": True}, "--enable-ssl-refresh"),
    ],
)
def test_tls_settings_without_a_certificate_are_errors(preflight, pair, given, named):
    given = {name: getattr(pair, value) if value in pair._fields else value for name, value in given.items()}
    [finding] = findings(preflight, "tls", **given)
    assert finding.startswith(f"error: {named}")
    assert "needs a certificate" in finding


def test_a_key_that_every_user_can_read_is_a_warning(preflight, tmp_path):
    pair = make_certificate(tmp_path, "open")
    pair.key.chmod(0o644)
    assert any(finding.startswith(f"warning: --ssl-keyfile {pair.key}") for finding in tls(preflight, pair))
    keys = tmp_path / "keys"
    keys.write_text("one\n")
    keys.chmod(0o644)
    assert findings(preflight, "api_keys", api_key_file=keys)[0].startswith(f"warning: --api-key-file {keys} can be")
    keys.chmod(0o600)
    assert findings(preflight, "api_keys", api_key_file=keys) == []


def test_a_key_file_without_a_key_is_an_error(preflight, tmp_path):
    keys = tmp_path / "keys"
    [finding] = findings(preflight, "api_keys", api_key_file=keys)
    assert finding == f"error: --api-key-file {keys} cannot be read: No such file or directory"
    keys.write_text("# comment\n\n")
    [finding] = findings(preflight, "api_keys", api_key_file=keys)
    assert finding.startswith(f"error: --api-key-file {keys} holds no key")
    keys.unlink()
    os.mkfifo(keys)
    [finding] = findings(preflight, "api_keys", api_key_file=keys)
    assert finding.startswith(f"error: --api-key-file {keys} is not a regular file")


def test_keys_everywhere_need_a_key(preflight, tmp_path):
    [finding] = findings(preflight, "api_keys", api_key_everywhere=True)
    assert finding.startswith("error: --api-key-everywhere needs a key")
    assert findings(preflight, "api_keys", api_key_everywhere=True, api_keys=("one",)) == []
