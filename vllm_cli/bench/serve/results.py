"""The result of `bench serve`, as it is written to `--json` and read as a baseline."""

from vllm_cli.bench.config import Endpoint, IdlePolicy
from vllm_cli.bench.request_format import TokenSource
from vllm_cli.bench.results import Ratio, ResultPart, RunResult, SideResult, Spread
from vllm_cli.bench.serve.config import OPEN_LOOP, ServeBenchConfig

SERVE_SCHEMA_VERSION = 2


def name_load(concurrency: int, request_rate: str | None) -> str:
    """`8 at once`, or `2.5 requests/s` of an open loop."""
    return f"{request_rate} requests/s" if concurrency == OPEN_LOOP else f"{concurrency} at once"


class RoundFigures(ResultPart, frozen=True, kw_only=True):
    """One round of one side at one level; a figure that could not be measured is null."""

    output_tokens_per_s: float
    requests_per_s: float
    ttft_mean_ms: float | None
    """Time to the first text; null unless streamed."""
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    tpot_mean_ms: float | None
    """Of each request, the time from its first to its last text per token after the first."""
    tpot_p50_ms: float | None
    tpot_p99_ms: float | None
    itl_mean_ms: float | None
    """Time between two pieces of text of one request."""
    itl_p50_ms: float | None
    itl_p99_ms: float | None
    e2e_p50_ms: float | None
    e2e_p99_ms: float | None
    health_p50_ms: float | None
    health_p99_ms: float | None
    health_max_ms: float | None
    delay_max_ms: float | None
    """Open loop: the longest time by which the generator itself sent a request after its due time."""
    num_late: int
    """Open loop: requests that were sent more than 10 ms after their due time."""
    duration_s: float
    num_requests: int
    num_errors: int
    num_short: int
    """Requests that ended before `max_tokens`."""
    prompt_tokens: int
    output_tokens: int
    num_probes: int
    num_probe_errors: int
    client_cpu_share: float
    """CPU time of the load generator, as a share of one processor."""
    errors: list[str]
    """The first few different error messages."""


class LevelResult(ResultPart, frozen=True, kw_only=True):
    """One side at one level."""

    concurrency: int
    """0 in an open loop."""
    summary: dict[str, Spread]
    """By figure, over the rounds that have it."""
    rounds: list[RoundFigures]


class ServeSideResult(SideResult, frozen=True, kw_only=True):
    """One server's results."""

    ready_after_s: float | None
    """From starting the command to its first completion; null for a server given by its URL."""
    token_source: TokenSource
    """`usage`: the server's own counts; `chunks`: pieces of text, where the server sends no usage."""
    has_ignore_eos: bool
    """False if the server does not accept `ignore_eos`, so that answers may end early."""
    levels: list[LevelResult]


class LevelRatio(Ratio, frozen=True, kw_only=True):
    """The ratios at one level."""

    concurrency: int


class ServeSettings(ResultPart, frozen=True, kw_only=True):
    """The load, the same for every side."""

    endpoint: Endpoint
    stream: bool
    max_tokens: int
    prompt_tokens: int
    shared_prefix_tokens: int
    request_rate: str | None
    """Requests per second of an open loop, or `inf`; null in a closed loop."""
    ignore_eos: bool
    num_rounds: int
    num_requests: dict[int, int]
    """Requests per round, by level."""
    idle: IdlePolicy
    seed: int

    @classmethod
    def of(cls, config: ServeBenchConfig) -> "ServeSettings":
        """The settings of a run."""
        return cls(
            endpoint=config.endpoint,
            stream=config.stream,
            max_tokens=config.max_tokens,
            prompt_tokens=config.prompt_tokens,
            shared_prefix_tokens=config.shared_prefix_tokens,
            request_rate=None if config.request_rate is None else f"{config.request_rate:g}",
            ignore_eos=config.ignore_eos,
            num_rounds=config.num_rounds,
            num_requests={level: config.requests_at(level) for level in config.levels},
            idle=config.idle,
            seed=config.seed,
        )


class ServeResult(RunResult, frozen=True, kw_only=True):
    """The result of one run of `bench serve`."""

    settings: ServeSettings
    sides: list[ServeSideResult]
    ratios: list[LevelRatio]

    @property
    def num_errors(self) -> int:
        return sum(figures.num_errors for side in self.sides for level in side.levels for figures in level.rounds)
