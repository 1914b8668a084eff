"""`vllm preload`, which imports the model loader."""

import vllm.model_executor.model_loader  # noqa: F401 - an expensive import


class Preload:
    name = "preload"

    @staticmethod
    def cmd(args) -> None:
        """Does nothing."""

    @staticmethod
    def subparser_init(commands):
        return commands.add_parser("preload")


def cmd_init():
    return [Preload()]
