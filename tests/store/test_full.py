"""A full disk: changes fail, whatever else is asked is answered, and work resumes (A5, I3, I8)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from broker.interfaces import StoreFailed
from broker.service import mediator
from tests.store.contract import commit_of, disclosure
from tests.store.waiting import Keeping, Stores
from tests.support.reactor import FakeReactor
from tests.support.server import cheap_passwords
from tests.support.transport import Client, connect


class RequestTask:
    """A mediator over a store whose disk has a quota."""

    def __init__(self, stores: Stores) -> None:
        options = mediator.Options()
        options.parseOptions(["--auth=none", "--udp=none", "--admin=none"])
        self.stores = stores
        self.keeping = Keeping(max_page_count=18)
        self.reactor = FakeReactor()
        store = stores.make(connect=self.keeping)
        self.service = mediator.MediatorService(
            self.reactor, options, store, owns_store=True, passwords=cheap_passwords()
        )
        self.service.privilegedStartService()
        self.service.startService()

    def terminal(self) -> Client:
        """A terminal's connection."""
        port, factory, _, interface = self.reactor.tcpServers[0]
        return connect(factory, self.reactor, port=port, host=interface)

    def ask(self, peer: Client, text: str) -> str:
        """What the mediator answers."""
        peer.type(text)
        answer = peer.text()
        while not answer:
            self.stores.pump.turn()
            answer = peer.text()
        return answer

    def stop(self) -> None:
        """End it, its store too."""
        stopping: Any = self.service.stopService()
        self.stores.pump.result(stopping)

    def quota(self, pages: int) -> None:
        """Let the database have so many pages of 4 KiB; the writer is idle meanwhile."""
        list(self.keeping.last.real.execute(f"PRAGMA max_page_count = {pages}"))


@pytest.fixture
def serving(stores: Stores) -> Iterator[RequestTask]:
    """One that serves."""
    made = RequestTask(stores)
    yield made
    made.stop()


COMPLETED = "NOTIFY\nRegistration Completed.\n\n"
NO_SPACE = "NOTIFY\nRegistration Failed.\nCause:the server has no space left\n\n"


def add(number: int) -> str:
    """A registration that makes a list 1 KB longer."""
    names = ",".join(f"{number}-{n}-{'x' * 110}" for n in range(8))
    return "REGISTER\nIdentifier:Ic\n" + f"Accept:Add {names}\n\n"


def fill(serving: RequestTask, peer: Client) -> tuple[str, str]:
    """Make a list longer until there is no space; give the registration refused, and the list."""
    for number in range(60):
        before = serving.ask(peer, "QUERY\nPERMITS\nIdentifier:Ic\n\n")
        answer = serving.ask(peer, add(number))
        if answer == NO_SPACE:
            return add(number), before
        assert answer == COMPLETED
    raise AssertionError("it is never full")


def test_changes_fail(serving: RequestTask) -> None:
    """A list that can't be kept is not changed, and the terminal is told why (A5).

    With space, what was refused is taken; the next process finds it, and all before (I8).
    """
    peer = serving.terminal()
    refused, before = fill(serving, peer)
    for _ in range(3):
        assert serving.ask(peer, "QUERY\nPERMITS\n\n") == before
        assert serving.ask(peer, refused) == NO_SPACE
    serving.quota(1000)
    assert serving.ask(peer, refused) == COMPLETED
    after = serving.ask(peer, "QUERY\nPERMITS\n\n")
    serving.stop()
    _, lists = serving.stores.look()
    assert set(lists) == {"Ic"}
    assert set(lists["Ic"].split(",")) == set(re.findall(r"[0-9]+-[0-9]+-x+", after))


def test_the_rest_works(serving: RequestTask) -> None:
    """Calls go through, strangers are refused, addresses are taken (I1, I3)."""
    filler, callee, caller, stranger = (serving.terminal() for _ in range(4))
    text = "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nAccept:Create Ia\n\n"
    assert serving.ask(callee, text) == COMPLETED
    fill(serving, filler)

    at = "REGISTER\nIdentifier:{}\nAddress:127.0.0.1\n\n"
    assert serving.ask(stranger, at.format("Ix")) == COMPLETED
    assert serving.ask(stranger, "QUERY\nCallee:Ib\n\n") == "NOTIFY\nPermission Denied.\n\n"
    assert serving.ask(caller, at.format("Ia")) == COMPLETED
    caller.type("QUERY\nCallee:Ib\n\n")
    assert callee.text() == "QUERY\nSTATUS\n\n"
    callee.type("NOTIFY\nSTATUS Acceptable.\n\n")
    assert caller.text().startswith("NOTIFY\nRequest Accepted.\n\n")


def test_every_kind(stores: Stores) -> None:
    """Changes of all kinds fail whole, and are kept again with space (A5, I9)."""
    keeping = Keeping(max_page_count=18)
    store, state = stores.open(connect=keeping)
    number = 0
    with pytest.raises(StoreFailed, match="no space left"):  # noqa: PT012
        while number < 5000:
            stores.pump.result(store.commit(commit_of(number + 1)))
            number += 1
    with pytest.raises(StoreFailed, match="no space left"):
        stores.pump.result(store.commit([disclosure(n) for n in range(1000)]))
    stores.stop(store)
    assert number > 10
    assert stores.commits() == (state.epoch, number)
    store, _ = stores.open()
    stores.pump.result(store.commit(commit_of(number + 1)))
    stores.stop(store)
    assert stores.commits() == (state.epoch, number + 1)
