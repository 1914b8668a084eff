"""Limits how long torch's threads spin at the end of a parallel region before they sleep."""

import os

from envs.registry import env

_SPIN_COUNT = 3_000
"""About ten microseconds: longer than the gap between two kernels, far shorter than a time slice.

With libgomp's default a thread spins so long that it occupies the core for which its descheduled partner
waits: 12 tokens/s instead of 150 with one other busy process on 2 cores. No spinning at all
(OMP_WAIT_POLICY=passive) costs a third of the speed of an idle machine.
"""


def limit_spinning() -> None:
    """Sets GOMP_SPINCOUNT here and for children, unless the user has set it; call before torch is loaded."""
    if env.GOMP_SPINCOUNT.raw is None and env.OMP_WAIT_POLICY.raw is None:
        os.environ[env.GOMP_SPINCOUNT.name] = str(_SPIN_COUNT)
