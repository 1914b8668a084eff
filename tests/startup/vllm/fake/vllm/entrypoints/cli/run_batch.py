"""`vllm run-batch`, which imports the model loader."""

import vllm.model_executor.model_loader  # noqa: F401 - an expensive import


class RunBatch:
    name = "run-batch"

    @staticmethod
    def cmd(args) -> None:
        """Does nothing."""

    @staticmethod
    def subparser_init(commands):
        return commands.add_parser("run-batch")


def cmd_init():
    return [RunBatch()]
