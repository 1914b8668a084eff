"""`vllm`: imports its subcommands to list them."""

from vllm.utils.argparse_utils import FlexibleArgumentParser


def main() -> None:
    import vllm.entrypoints.cli.benchmark.main
    import vllm.entrypoints.cli.run_batch
    import vllm.entrypoints.cli.serve
    from vllm import __version__

    vllm.entrypoints.cli.benchmark.main.maybe_exec_rust_bench()
    parser = FlexibleArgumentParser(prog="vllm", description="fake vLLM")
    parser.add_argument("-v", "--version", action="version", version=f"fake vLLM {__version__}")
    commands = parser.add_subparsers(dest="subparser")
    cli = vllm.entrypoints.cli
    by_name = {}
    for module in (cli.serve, cli.benchmark.main, cli.run_batch):
        for command in module.cmd_init():
            command.subparser_init(commands).set_defaults(dispatch_function=command.cmd)
            by_name[command.name] = command
    args = parser.parse_args()
    if args.subparser in by_name:
        by_name[args.subparser].validate(args)
    dispatch = vars(args).pop("dispatch_function", lambda _: parser.print_help())  # engines get only the arguments
    dispatch(args)


if __name__ == "__main__":
    main()
