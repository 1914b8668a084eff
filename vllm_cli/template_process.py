"""A standby's template process: imports what servers of its kind need, then forks the servers.

Import this module while low descriptors are taken, because front processes have files there.
"""

import vllm_cli.commands.serve  # noqa: F401 - what every server imports
from startup.logs.setup import configure_logging, log_options_of_environment
from startup.standby.template import FrontLink, wait_for_start


def become_server(kind: str, standby_fd: str, *models: str) -> FrontLink:
    """Waits for starts. Returns in each forked server, with its link to the front process."""
    configure_logging(log_options_of_environment(), role="template")
    return wait_for_start(kind, models, int(standby_fd))
