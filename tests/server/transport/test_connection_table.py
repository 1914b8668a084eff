"""Who goes when a connection comes for which there is no room."""

import pytest

from server.transport.connection_table import ConnectionTable


class Client:
    """A connection; one that still sends cannot go."""

    def __init__(self, *, is_sending: bool = False) -> None:
        self.is_sending = is_sending
        self.is_evicted = False

    def evict(self) -> bool:
        self.is_evicted = not self.is_sending
        return self.is_evicted


def test_the_longest_idle_one_goes() -> None:
    table = ConnectionTable(3)
    clients = [Client() for _ in range(3)]
    assert all(map(table.add, clients))
    table.note_busy(clients[0])
    table.note_idle(clients[0])
    assert table.add(Client())
    assert [client.is_evicted for client in clients] == [False, True, False]


def test_each_that_comes_ends_one_though_their_ends_are_not_heard_of_yet() -> None:
    table = ConnectionTable(3)
    clients = [Client() for _ in range(3)]
    assert all(map(table.add, [*clients, Client(), Client()]))
    assert [client.is_evicted for client in clients] == [True, True, False]
    for client in clients[:2]:
        table.discard(client)
    assert table.add(Client())
    assert clients[2].is_evicted


def test_a_handshake_that_becomes_a_connection_ends_no_second_one() -> None:
    """The end of the first one need not be known by then."""
    table = ConnectionTable(3)
    clients, handshake = [Client() for _ in range(3)], Client()
    assert all(map(table.add, [*clients, handshake]))
    table.discard(handshake)
    assert table.add(Client())
    assert [client.is_evicted for client in clients] == [True, False, False]


@pytest.mark.parametrize("num_sending", [2, 200])
def test_answers_that_are_on_their_way_are_not_cut(num_sending: int) -> None:
    """Many of them may have to be asked, a few for each connection that comes."""
    table = ConnectionTable(num_sending + 1)
    sending, idle = [Client(is_sending=True) for _ in range(num_sending)], Client()
    assert all(map(table.add, [*sending, idle]))
    comers = [Client(is_sending=True) for _ in range(num_sending)]
    assert any(map(table.add, comers))
    assert idle.is_evicted
    assert not any(client.is_evicted for client in sending + comers)


def test_there_is_no_room_among_busy_ones() -> None:
    table = ConnectionTable(2)
    clients = [Client() for _ in range(2)]
    for client in clients:
        table.add(client)
        table.note_busy(client)
    assert not table.add(Client())
    assert not any(client.is_evicted for client in clients)


def test_one_that_is_gone_makes_no_room() -> None:
    """Its last answer may be complete only afterwards."""
    table = ConnectionTable(1)
    gone, busy = Client(), Client()
    table.add(gone)
    table.note_busy(gone)
    table.discard(gone)
    table.note_idle(gone)
    table.add(busy)
    table.note_busy(busy)
    assert not table.add(Client())
    assert not gone.is_evicted
