"""`vllm bench`."""


class Bench:
    name = "bench"

    @staticmethod
    def cmd(args) -> None:
        """Does nothing."""

    @staticmethod
    def subparser_init(commands):
        return commands.add_parser("bench")


def maybe_exec_rust_bench() -> None:
    """Does nothing."""


def cmd_init():
    return [Bench()]
