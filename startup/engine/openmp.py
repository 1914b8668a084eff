"""How long torch's threads spin at the end of a parallel region before they sleep."""

import os

from envs.registry import env

_SPIN_COUNT = 3_000
"""About ten microseconds: longer than the gap between two kernels, far shorter than a time slice.

libgomp's default spins so long that a thread whose partner was descheduled burns the core that the partner
waits for: 12 tokens/s instead of 150 once one other process was busy on 2 cores.
Not spinning at all (OMP_WAIT_POLICY=passive) costs a third of the speed of a quiet machine.
"""


def limit_spinning() -> None:
    """Sets GOMP_SPINCOUNT here and for children, unless the user has decided; call before torch is loaded."""
    if env.GOMP_SPINCOUNT.raw is None and env.OMP_WAIT_POLICY.raw is None:
        os.environ[env.GOMP_SPINCOUNT.name] = str(_SPIN_COUNT)
