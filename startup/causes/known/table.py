"""All known causes, in the order in which they are tried: a cause stands before more general ones."""

from typing import Final

from startup.causes.known.devices import DEVICES, MEMORY
from startup.causes.known.files import FILES
from startup.causes.known.installation import INSTALLATION
from startup.causes.known.model import MODEL
from startup.causes.known.processes import PROCESSES

KNOWN: Final = (*MEMORY, *DEVICES, *MODEL, *FILES, *INSTALLATION, *PROCESSES)
