import pytest

from base.errors import ConfigError
from base.server_settings import NetworkConfig, TlsConfig
from server.terms.server_config import GenerationConfig


@pytest.mark.parametrize("path", ["api", " /api", "/a b", "/a\r\nX: y", "/ä"])
def test_invalid_root_paths_are_rejected(path):
    with pytest.raises(ConfigError, match="--root-path"):
        NetworkConfig(root_path=path)


def test_requiring_client_certificates_needs_a_ca_file():
    with pytest.raises(ConfigError, match="--ssl-ca-certs"):
        TlsConfig(ssl_cert_reqs=2)
    with pytest.raises(ConfigError, match="0 .none., 1 .optional. or 2 .required."):
        TlsConfig(ssl_cert_reqs=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enable_auto_tool_choice": True}, "used with --tool-call-parser"),
        ({"reasoning_parser": "qwen"}, "--reasoning-parser must be one of .*deepseek_r1, .*qwen3.*, got 'qwen'"),
        ({"reasoning_config": {"reasoning_end_str": "x"}}, "--reasoning-config must be used with --reasoning-parser"),
        ({"reasoning_config": {"a": 1}, "reasoning_parser": "qwen3"}, "--reasoning-config must be an object of texts"),
        ({"tool_call_parser": "hermess"}, "--tool-call-parser must be one of auto, .*hermes.*, got 'hermess'"),
    ],
)
def test_parsers_are_known_and_complete(options, message):
    with pytest.raises(ConfigError, match=message):
        GenerationConfig(**options)
