"""`vllm serve`: one API server in this process, several in other processes, or none."""

import argparse
import os
import signal
import sys
import tempfile
from multiprocessing.connection import wait
from typing import Any

import uvloop
from vllm.config import create_engine_config
from vllm.entrypoints.launchers.launcher import run_server, setup_server
from vllm.utils.argparse_utils import FlexibleArgumentParser, human_readable_int, optional_type
from vllm.v1.engine import async_llm  # noqa: F401
from vllm.v1.engine.utils import launch_engine
from vllm.v1.utils import APIServerProcessManager


class ServeSubcommand:
    name = "serve"

    @staticmethod
    def validate(args: argparse.Namespace) -> None:
        """Accepts all arguments."""

    @staticmethod
    def cmd(args: argparse.Namespace) -> None:
        if args.model_tag is not None:
            args.model = args.model_tag
        if args.raises:
            raise {"EOFError": EOFError, "BrokenPipeError": BrokenPipeError, "ValueError": ValueError}[args.raises](
                "as vLLM does"
            )
        if args.headless:
            _run_headless(args)
        elif args.api_server_count > 1:
            _run_multi_api_server(args)
        else:
            uvloop.run(run_server(args))

    @staticmethod
    def subparser_init(commands: Any) -> argparse.ArgumentParser:
        parser = commands.add_parser("serve", description="fake vLLM's serve", usage="vllm serve [model_tag] [options]")
        return make_arg_parser(parser)


def make_arg_parser(parser: FlexibleArgumentParser) -> FlexibleArgumentParser:
    add = parser.add_argument
    add("model_tag", nargs="?")
    for name in (
        *("model", "config", "host", "uds", "ssl-keyfile", "ssl-certfile", "log-level", "log-config-file"),
        *("chat-template", "disable-access-log-for-endpoints", "distributed-executor-backend", "worker-cls"),
    ):
        add(f"--{name}")
    for name, value in {"port": 8000, "nnodes": 1, "node-rank": 0, "shutdown-timeout": 0, "max-num-seqs": None}.items():
        add(f"--{name}", type=int, default=value)
    add("--master-addr", default="127.0.0.1")
    for names in (
        ("--tensor-parallel-size", "-tp"),
        ("--pipeline-parallel-size", "-pp"),
        ("--api-server-count", "-asc"),
    ):
        add(*names, type=int, default=1)
    for name in ("headless", "enforce-eager", "enable-sleep-mode", "numa-bind", "disable-uvicorn-access-log"):
        add(f"--{name}", action="store_true")
    for name in ("served-model-name", "api-key"):
        add(f"--{name}", nargs="+")
    add("--hf-token", nargs="?")
    add("--middleware", action="append", default=[])
    add("--dtype", choices=["auto", "float16", "half"])
    add("--enable-prefix-caching", action=argparse.BooleanOptionalAction)
    add("--max-model-len", type=optional_type(human_readable_int))
    add("--quantization", "-q", type=optional_type(str))
    # What only this fake has.
    add("--change-state", metavar="FILE")
    add("--gate", metavar="FILE", help="The engine is not ready before this file exists.")
    for name in ("engine-fails", "worker-prints-error"):
        add(f"--{name}", action="store_true")
    add("--worker-imports", nargs="*", default=[])
    add("--raises")
    return parser


def cmd_init() -> list[ServeSubcommand]:
    return [ServeSubcommand()]


def _run_headless(args: argparse.Namespace) -> None:
    _exit_at_signals()
    manager = launch_engine(create_engine_config(args))
    print(f"headless engine {manager.process.pid}", flush=True)
    try:
        wait([manager.process.sentinel])
    finally:
        manager.shutdown()


def _run_multi_api_server(args: argparse.Namespace) -> None:
    _exit_at_signals()
    metrics = tempfile.TemporaryDirectory()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics.name
    sock = setup_server(args, reuse_port=True)
    config = create_engine_config(args)
    engine = launch_engine(config)
    servers = APIServerProcessManager(sock, args.api_server_count, config, engine.address)
    try:
        running = {process.sentinel: process for process in (engine.process, *servers.processes)}
        while running:
            for sentinel in wait(list(running)):
                process = running.pop(sentinel)
                if process is engine.process or process.exitcode:
                    raise RuntimeError(f"Process {process.name} died unexpectedly.")
    finally:
        servers.shutdown()
        engine.shutdown()
        metrics.cleanup()


def _exit_at_signals() -> list[int]:
    """Sets signal handlers. Returns the list to which these append received signals."""
    came: list[int] = []

    def exit_at_first(number: int, frame: Any) -> None:
        came.append(number)
        if len(came) == 1:
            sys.exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, exit_at_first)
    return came
