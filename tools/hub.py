"""`python -m tools.hub FOLDER…`: serves model folders as repositories of a Hugging Face hub.

Prints the value for HF_ENDPOINT, then serves until it is interrupted. What can go wrong is given by options,
or while it serves, here with the address in $HF_ENDPOINT:

\b
curl $HF_ENDPOINT/stats                                          the counters, in JSON
curl -X DELETE $HF_ENDPOINT/stats                                the same, then sets them to zero
curl $HF_ENDPOINT/link -d '{"rate": "1Gbit"}'                    the link's rate
curl $HF_ENDPOINT/faults -d '{"fault": "stall,after=60MB"}'      one more fault; -X DELETE removes all
"""

import signal
import threading
from pathlib import Path

import click

from tests.hub.faults import Fault
from tests.hub.link import parse_rate
from tests.hub.server import HubServer


@click.command(help=__doc__)
@click.argument("folders", nargs=-1, required=True, metavar="[ORG/MODEL=]FOLDER…")
@click.option("--rate", default="unlimited", help="Of the link, which all connections share: 100Mbit, 1Gbit, 12MB.")
@click.option("--latency", default=0.0, metavar="SECONDS", help="Before each answer.")
@click.option("--host", default="127.0.0.1", help="The address to listen at.")
@click.option("--port", default=0, help="The hub's port; files in LFS have another one.")
@click.option("--xet", is_flag=True, help="Announce Xet, whose server accepts connections and never answers.")
@click.option("--gated", multiple=True, metavar="ORG/MODEL", help="Its files are only for --token.")
@click.option("--private", multiple=True, metavar="ORG/MODEL", help="It exists only for --token.")
@click.option("--token", help="The only token that is accepted; without it, any.")
@click.option("--renamed", multiple=True, metavar="OLD=NEW", help="Requests for OLD are redirected.")
@click.option(
    "--fault",
    multiple=True,
    metavar="KIND[,KEY=VALUE…]",
    help="stall, cut, short or wrong with after=BYTES; status with status=, retry_after=; "
    "all with times=N or times=always, and path=PATTERN (tests/hub/faults.py).",
)
def main(
    folders: tuple[str, ...],
    rate: str,
    latency: float,
    host: str,
    port: int,
    xet: bool,
    gated: tuple[str, ...],
    private: tuple[str, ...],
    token: str | None,
    renamed: tuple[str, ...],
    fault: tuple[str, ...],
) -> None:
    try:
        parse_rate(rate)
        faults = [Fault.parse(text) for text in fault]
    except (TypeError, ValueError) as err:
        raise click.UsageError(str(err)) from err
    hub = HubServer(rate=rate, host=host, port=port)
    for words in folders:
        _add(hub, words)
    hub.gated.update(gated)
    hub.private.update(private)
    hub.token = token
    hub.is_xet = xet
    hub.latency_s = latency
    hub.renamed.update(text.partition("=")[::2] for text in renamed)
    for one in faults:
        hub.faults.add(one)
    _serve(hub)


def _add(hub: HubServer, words: str) -> None:
    """Adds a folder; one of the hub's cache has its model's name unless another one is given."""
    model_id, given, path = words.rpartition("=")
    folder = Path(path)
    if not folder.is_dir():
        raise click.UsageError(f"{folder} is not a folder")
    commit = hub.add(model_id if given else _name(folder), folder)
    click.echo(f"{model_id or _name(folder)}: {len(commit.files)} files, {commit.size / 1e6:.1f} MB; hashing", err=True)
    click.echo(f"commit {commit.id}", err=True)  # hashes all files


def _name(folder: Path) -> str:
    parts = folder.absolute().parts
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/")
    return f"local/{folder.absolute().name}"


def _serve(hub: HubServer) -> None:
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    with hub.serving():
        click.echo(f"HF_ENDPOINT={hub.url}")
        over.wait()


if __name__ == "__main__":
    main()
