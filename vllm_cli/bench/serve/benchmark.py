"""`bench serve`: its parts, put together."""

from vllm_cli.bench.outcome import Benchmark
from vllm_cli.bench.serve.chart import draw_page
from vllm_cli.bench.serve.regression import find_slower_than_baseline, find_slower_than_others, read_baseline
from vllm_cli.bench.serve.report import write_report
from vllm_cli.bench.serve.run import run_bench

SERVE = Benchmark(
    run=run_bench,
    read_baseline=read_baseline,
    write_report=write_report,
    draw=draw_page,
    find_slower_than_baseline=find_slower_than_baseline,
    find_slower_than_others=find_slower_than_others,
    has_failed=lambda result: result.num_errors > 0,
)
