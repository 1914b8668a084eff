"""Creates the tracer if it is configured; otherwise nothing of OpenTelemetry is imported."""

from typing import TYPE_CHECKING

from server.server_config import ServerConfig

if TYPE_CHECKING:
    from server.tracing.tracer import Tracer


def build_tracer(config: ServerConfig, version: str) -> "Tracer | None":
    """The tracer of `--otlp-traces-endpoint`.

    Raises:
        ConfigError: the endpoint is not an address.
    """
    if config.logging.otlp_traces_endpoint is None:
        return None
    from server.tracing.endpoint import read_endpoint
    from server.tracing.tracer import Tracer

    endpoint = read_endpoint(config.logging.otlp_traces_endpoint, config.logging.otlp_traces_protocol)
    return Tracer(endpoint, model_name=config.served_model_names[0], version=version)
