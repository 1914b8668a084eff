"""Settings that `ServerConfig` rejects."""

import pytest

from server.config import ServerConfig
from server.errors import ConfigError


@pytest.mark.parametrize("path", ["api", " /api", "/a b", "/a\r\nX: y", "/ä"])
def test_invalid_root_paths_are_rejected(path: str) -> None:
    with pytest.raises(ConfigError, match="--root-path"):
        ServerConfig(served_model_names=("m",), root_path=path)


def test_requiring_client_certificates_needs_a_ca_file() -> None:
    with pytest.raises(ConfigError, match="--ssl-ca-certs"):
        ServerConfig(served_model_names=("m",), ssl_cert_reqs=2)
    with pytest.raises(ConfigError, match="0 .none., 1 .optional. or 2 .required."):
        ServerConfig(served_model_names=("m",), ssl_cert_reqs=3)
