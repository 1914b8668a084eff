"""What watches a running server and tells: the loop's heartbeat, the line of figures, the access log, traces."""

from collections.abc import Callable

from server.access_log import set_up_access_log
from server.serving.loop_heartbeat import LoopHeartbeat
from server.serving.services import Services
from server.serving.stats_line import StatsLine


class Telemetry:
    """One run of the event loop; every method is called there."""

    def __init__(self, services: Services, on_beat: Callable[[], None] = lambda: None) -> None:
        """`on_beat` is called 50 times a second."""
        config = services.config
        self._services = services
        self._on_beat = on_beat
        self._heartbeat = LoopHeartbeat(self._beat)
        self._stats = None if config.disable_log_stats else StatsLine(services, config.log_stats_interval_s)
        services.metrics.loop.watch(self._heartbeat)
        set_up_access_log(config.disable_access_log_for_endpoints)

    def start(self) -> None:
        """The loop runs."""
        self._heartbeat.start()

    def tell_ready(self) -> None:
        """The start is over."""
        if self._stats is not None:
            self._stats.start()
        if self._services.tracer is not None:
            self._services.tracer.record_start(self._services.start.report())

    def _beat(self, lag_s: float) -> None:
        self._services.metrics.loop.record_lag(lag_s)
        self._on_beat()

    def close(self) -> None:
        """The loop is about to end."""
        self._heartbeat.close()
        if self._stats is not None:
            self._stats.close()
