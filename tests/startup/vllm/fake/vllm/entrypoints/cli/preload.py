"""`vllm preload`, which brings the model loader."""

import os

import vllm.model_executor.model_loader  # noqa: F401 - what it would cost

IMPORTED_IN = os.getpid()


class Preload:
    name = "preload"

    @staticmethod
    def cmd(args) -> None:
        """Nothing."""

    @staticmethod
    def subparser_init(commands):
        return commands.add_parser("preload")


def cmd_init():
    return [Preload()]
