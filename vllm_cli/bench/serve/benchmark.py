"""The functions of `bench serve`."""

from vllm_cli.bench.benchmark import Benchmark
from vllm_cli.bench.serve.chart import draw_serve_page
from vllm_cli.bench.serve.regression import find_worse_than_baseline, find_worse_than_others, read_serve_baseline
from vllm_cli.bench.serve.report import write_serve_report
from vllm_cli.bench.serve.run import run_serve_bench

SERVE = Benchmark(
    run=run_serve_bench,
    read_baseline=read_serve_baseline,
    write_report=write_serve_report,
    draw=draw_serve_page,
    find_worse_than_baseline=find_worse_than_baseline,
    find_worse_than_others=find_worse_than_others,
    has_failed=lambda result: result.num_errors > 0,
)
