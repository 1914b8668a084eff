"""Agreement of all ranks on a step that all or none must take, because a rank alone would wait for ever."""

from typing import Final

from startup.hook import Name

WORLD: Final = Name("vllm.distributed.parallel_state", "get_world_group", ())
"""What a hook that uses `first_of_all_ranks` needs."""


def first_of_all_ranks(text: str) -> str:
    """The first text of any rank that is not empty. Called on all ranks."""
    world = WORLD.get()()
    texts = [text] * world.world_size
    if world.world_size > 1:
        import torch.distributed  # noqa: PLC0415 - vLLM has imported it

        torch.distributed.all_gather_object(texts, text, group=world.cpu_group)
    return next(filter(None, texts), "")
