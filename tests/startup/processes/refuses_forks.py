"""A module after whose import forks of the forkserver cannot use the GPU."""

from startup.processes.forkserver import refuse_forks

refuse_forks("an import has initialized a driver")
