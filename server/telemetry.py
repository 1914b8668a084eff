"""Observes a running server: the heartbeat, the log line of figures, the access log's filters."""

from collections.abc import Callable

from server.access_log import set_up_access_log
from server.config import ServerConfig
from server.engine.process_link.client import EngineClient
from server.metrics.server_metrics import ServerMetrics
from server.operation.loop_heartbeat import LoopHeartbeat
from server.operation.stats_line import StatsLine


class Telemetry:
    """One run of the event loop; every method is called there."""

    def __init__(
        self,
        config: ServerConfig,
        engine: EngineClient,
        metrics: ServerMetrics,
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_beat` is called 50 times a second."""
        self._loop_metrics = metrics.loop
        self._on_beat = on_beat
        self._heartbeat = LoopHeartbeat(self._beat)
        self._stats = None if config.disable_log_stats else StatsLine(engine, metrics, config.log_stats_interval_s)
        metrics.loop.watch(self._heartbeat)
        set_up_access_log(config.disable_access_log_for_endpoints)

    def start(self) -> None:
        """Starts the heartbeat; called once the loop runs."""
        self._heartbeat.start()

    def start_stats(self) -> None:
        """Starts the log line of figures, if it is wanted; called once the engine is ready."""
        if self._stats is not None:
            self._stats.start()

    def close(self) -> None:
        """Stops both; called before the loop ends."""
        self._heartbeat.close()
        if self._stats is not None:
            self._stats.close()

    def _beat(self, lag_s: float) -> None:
        self._loop_metrics.record_lag(lag_s)
        self._on_beat()
