"""All hooks: what the launcher changes in, or needs of, vLLM and its libraries.

To add a hook: declare it in `of_vllm` or `of_libraries`, and add it to the tuple at the end of that file. In
the module that places the hook, take the names from the declaration, and place it only if `left_out.applies`
returns True. Then run `make docs`.
"""

from typing import Final

from startup.hooks.hook import Hook
from startup.hooks.of_libraries import OF_LIBRARIES
from startup.hooks.of_vllm import OF_VLLM

HOOKS: Final[tuple[Hook, ...]] = (*OF_VLLM, *OF_LIBRARIES)
