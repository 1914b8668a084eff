"""A server recognises the front that has started it, and reports to it."""

import os
import socket
from collections.abc import Iterator

import pytest

from envs import foreign
from envs.registry import env
from startup.errors import StartupError
from startup.probes.front_link import FrontLink, FrontOffer
from startup.probes.listener import listen
from startup.probes.serving_messages import ServingSettings


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The front's end of the link that this process is offered."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening = listen(host="127.0.0.1", port=0, uds=None)
    offer = FrontOffer(os.getpid(), theirs.detach(), listening.detach(), 600.0, 2, 3)
    monkeypatch.setenv(env.VCLI_FRONT.name, offer.encode())
    with ours:
        yield ours


def test_a_server_reports_over_the_link_as_to_a_responder(front: socket.socket) -> None:
    link = FrontLink.of_environment()
    assert link is not None
    settings = ServingSettings(keep_alive_s=1.0, reports_probes=False, wants_realtime=False)
    with link.listener, link:
        assert link.offer[3:] == (600.0, 2, 3)
        assert link.address == link.listener.getsockname()
        link.update(b"{}")
        assert link.keep(settings) is not None
        link.update(b"{}")
        assert [front.recv(1 << 12) for _ in range(3)] == [b"{}", settings.encode(), b"{}"]
        with pytest.raises(StartupError, match="--idle-stop"):
            link.hand_over()


def test_a_front_that_has_ended_is_no_error(front: socket.socket) -> None:
    link = FrontLink.of_environment()
    assert link is not None
    with link.listener, link:
        front.close()
        link.update(b"{}")
        assert link.keep(ServingSettings(keep_alive_s=1.0, reports_probes=False, wants_realtime=False)) is None


def test_an_offer_to_another_process_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env.VCLI_FRONT.name, FrontOffer(os.getpid() + 1, 5, 6, 60.0, 0, 0).encode())
    assert not foreign.has_front()
    assert FrontLink.of_environment() is None


def test_an_offer_goes_over_to_a_forked_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm start replaces the process that was started by a fork of the standby's."""
    other_pid = os.getpid() + 1
    monkeypatch.setenv(env.VCLI_FRONT.name, FrontOffer(other_pid, 5, 6, 60.0, 0, 0).encode())
    foreign.readdress(other_pid, os.getpid())
    assert FrontOffer.of_environment() == (os.getpid(), 5, 6, 60.0, 0, 0)
