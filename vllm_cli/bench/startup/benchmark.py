"""The functions of `bench startup`."""

from vllm_cli.bench.benchmark import Benchmark
from vllm_cli.bench.startup.chart import draw_startup_page
from vllm_cli.bench.startup.regression import (
    find_worse_than_baseline,
    find_worse_than_others,
    read_startup_baseline,
)
from vllm_cli.bench.startup.report import write_startup_report
from vllm_cli.bench.startup.run import run_startup_bench
from vllm_cli.bench.startup.svg import draw_startup_svg

STARTUP = Benchmark(
    run=run_startup_bench,
    read_baseline=read_startup_baseline,
    write_report=write_startup_report,
    draw=draw_startup_page,
    draw_svg=draw_startup_svg,
    find_worse_than_baseline=find_worse_than_baseline,
    find_worse_than_others=find_worse_than_others,
)
