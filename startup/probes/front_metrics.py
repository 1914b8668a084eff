"""The metrics of a server's front, which a running server shows with its own."""

from typing import TYPE_CHECKING, Any, Final

from startup.probes.front_link import FrontOffer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

STOPPED: Final = ("vllm_cli:model_stopped", "1 while the model is stopped because no request came (--idle-stop).")
IDLE_STOPS: Final = ("vllm_cli:idle_stops", "How often the model was stopped because no request came.")
WAKES: Final = ("vllm_cli:wakes", "How often a request has started the model.")


class FrontCollector:
    """Implements prometheus_client's `Collector`."""

    def __init__(self, offer: FrontOffer) -> None:
        self._offer = offer

    def collect(self) -> "Iterator[Metric]":
        """The families while the model runs."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        yield GaugeMetricFamily(*STOPPED, value=0)
        yield CounterMetricFamily(*IDLE_STOPS, value=self._offer.num_idle_stops)
        yield CounterMetricFamily(*WAKES, value=self._offer.num_wakes)


def register(registry: Any, offer: FrontOffer) -> None:
    """Adds the families to a registry of prometheus_client."""
    registry.register(FrontCollector(offer))


def write_stopped(text: bytes, *, is_stopped: bool, num_idle_stops: int, num_wakes: int) -> bytes:
    """The text of a stopped server's metrics with the current values."""
    values = ((STOPPED, "gauge", "", int(is_stopped)), (IDLE_STOPS, "counter", "_total", num_idle_stops))
    names = tuple(
        f"{prefix}{name}" for name, _ in (STOPPED, IDLE_STOPS, WAKES) for prefix in ("", "# HELP ", "# TYPE ")
    )
    lines = [line for line in text.decode().splitlines() if line and not line.startswith(names)]
    for (name, meaning), kind, suffix, value in (*values, (WAKES, "counter", "_total", num_wakes)):
        sample = f"{name}{suffix}"
        lines += [f"# HELP {sample} {meaning}", f"# TYPE {sample} {kind}", f"{sample} {value}.0"]
    return "\n".join([*lines, ""]).encode()
