"""The functions of `bench liveness`."""

from vllm_cli.bench.benchmark import Benchmark
from vllm_cli.bench.liveness.chart import draw_liveness_page
from vllm_cli.bench.liveness.regression import (
    find_worse_than_baseline,
    find_worse_than_others,
    read_liveness_baseline,
)
from vllm_cli.bench.liveness.report import write_liveness_report
from vllm_cli.bench.liveness.run import run_liveness_bench

LIVENESS = Benchmark(
    run=run_liveness_bench,
    read_baseline=read_liveness_baseline,
    write_report=write_liveness_report,
    draw=draw_liveness_page,
    find_worse_than_baseline=find_worse_than_baseline,
    find_worse_than_others=find_worse_than_others,
    has_failed=lambda result: result.num_errors > 0,
)
