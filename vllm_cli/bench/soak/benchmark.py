"""`bench soak`: its parts, put together."""

from vllm_cli.bench.outcome import Examination
from vllm_cli.bench.results import encode_result
from vllm_cli.bench.soak.chart import draw_soak_page
from vllm_cli.bench.soak.report import write_soak_report
from vllm_cli.bench.soak.run import run_soak

SOAK = Examination(
    run=run_soak,
    write_report=write_soak_report,
    encode=encode_result,
    draw=draw_soak_page,
    has_failed=lambda result: not result.is_fine,
)
