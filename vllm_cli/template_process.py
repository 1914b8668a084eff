"""A standby's template process: imports what servers of its kind need, then forks the servers.

Import this module while low descriptors are taken, because front processes have files there.
"""

from pathlib import Path

import click

import vllm_cli.commands.serve  # noqa: F401 - what every server imports
from base.errors import ConfigError
from envs.variable import EnvError
from startup.arguments.read_arguments import read_arguments
from startup.errors import StartupError
from startup.logs.setup import configure_logging, log_options_of_environment
from startup.processes.messages import RefusedError
from startup.settings.config_file import ConfigFile
from startup.settings.serve_arguments import LauncherLine
from startup.standby.template import EarlyRead, FrontLink, wait_for_start


def become_server(kind: str, standby_fd: str, *models: str) -> FrontLink:
    """Waits for starts. Returns in each forked server, with its link to the front process."""
    configure_logging(log_options_of_environment(), role="template")
    return wait_for_start(kind, models, int(standby_fd), _read)


def _read(line: LauncherLine) -> EarlyRead:
    """Reads the arguments of a start. If they have a fault, the command reads them again and reports it."""
    try:
        read = read_arguments(line, read_file=_read_regular)
    except (click.ClickException, ConfigError, EnvError, StartupError):
        return EarlyRead(line)
    return EarlyRead(read, read.vllm, read.wants_cold_start)


def _read_regular(path: str) -> ConfigFile:
    if Path(path).exists() and not Path(path).is_file():
        raise RefusedError(f"{path}, a file of settings, may be a pipe, which only one process can read")
    return ConfigFile.read(path)
