"""`vllm`: imports its subcommands to list them."""

import argparse
import sys


class FlexibleArgumentParser(argparse.ArgumentParser):
    """`--help=TOPIC` prints a part of the help; flags may have underscores."""

    def parse_args(self, args=None, namespace=None):
        topic = next((word for word in sys.argv if word.startswith("--help=")), None)
        if topic is not None:
            print(f"fake vLLM's help about {topic.removeprefix('--help=')}")
            raise SystemExit(0)
        words = sys.argv[1:] if args is None else args
        return super().parse_args([_with_dashes(word) for word in words], namespace)


def _with_dashes(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if word.startswith("--") else word


def main() -> None:
    import vllm.entrypoints.cli.benchmark.main
    import vllm.entrypoints.cli.preload
    import vllm.entrypoints.cli.serve
    from vllm import __version__

    vllm.entrypoints.cli.benchmark.main.maybe_exec_rust_bench()
    parser = FlexibleArgumentParser(prog="vllm", description="fake vLLM")
    parser.add_argument("-v", "--version", action="version", version=f"fake vLLM {__version__}")
    commands = parser.add_subparsers(dest="subparser")
    cli = vllm.entrypoints.cli
    by_name = {}
    for module in (cli.serve, cli.benchmark.main, cli.preload):
        for command in module.cmd_init():
            command.subparser_init(commands).set_defaults(dispatch_function=command.cmd)
            by_name[command.name] = command
    args = parser.parse_args()
    if args.subparser in by_name:
        by_name[args.subparser].validate(args)
    if hasattr(args, "dispatch_function"):
        args.dispatch_function(args)
    else:
        parser.print_help()


if __name__ == "__main__":
    main()
