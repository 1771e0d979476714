"""Addresses by key: granted round the whole range, given back, and never held by two."""

from __future__ import annotations

import ipaddress
import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from container.contracts.network import AttachmentRequest
from container.ipc import AlreadyExists, ContainerError, InvalidArgument, Overloaded
from container.network import leases
from container.network.leases import Leases, check_mac, mac_of
from container.network.records import Record, Records


def pool(subnet: str = "10.0.0.0/29", gateway: str = "10.0.0.1") -> Leases:
    return Leases((subnet,), (gateway,))


def test_an_address_that_was_given_back_is_used_after_all_others():
    addresses = pool()
    seen: list[str] = []
    for number in range(6):
        seen += addresses.grant(f"k{number}")
        addresses.release(f"k{number}")
    assert seen == [f"10.0.0.{n}" for n in (2, 3, 4, 5, 6, 2)]


def test_a_key_gets_its_last_address_again_if_nobody_holds_it():
    addresses = pool()
    addresses.grant("a")
    addresses.grant("b")
    addresses.release("a")
    assert addresses.grant("a") == ("10.0.0.2",)


def test_a_key_whose_last_address_is_held_gets_the_next():
    addresses = pool()
    addresses.grant("a")
    addresses.release("a")
    addresses.grant("b", ("10.0.0.2",))
    assert addresses.grant("a") == ("10.0.0.3",)


def test_a_key_that_holds_an_address_keeps_it():
    addresses = pool()
    assert addresses.grant("a") == addresses.grant("a")


def test_a_key_that_holds_an_address_cannot_ask_for_another():
    addresses = pool()
    addresses.grant("a")
    with pytest.raises(InvalidArgument, match=r"a holds 10\.0\.0\.2 already, not 10\.0\.0\.5"):
        addresses.grant("a", ("10.0.0.5",))


def test_an_exhausted_range_says_so_and_grants_again_after_a_release():
    addresses = pool()
    for number in range(5):
        addresses.grant(f"k{number}")
    with pytest.raises(Overloaded, match=r"no address is left in 10\.0\.0\.0/29"):
        addresses.grant("late")
    addresses.release("k3")
    assert addresses.grant("late") == ("10.0.0.5",)


def test_a_range_of_both_families_is_granted_whole_or_not_at_all():
    both = Leases(("10.0.0.0/30", "fd00::/64"), ("10.0.0.1", "fd00::1"))
    assert both.grant("a") == ("10.0.0.2", "fd00::2")
    with pytest.raises(Overloaded):
        both.grant("b")
    assert both.holder("fd00::3") is None


def test_an_address_that_is_held_is_refused_with_its_holder():
    addresses = pool()
    addresses.grant("a", ("10.0.0.4",))
    with pytest.raises(AlreadyExists, match=r"10\.0\.0\.4 is held by a") as caught:
        addresses.grant("b", ("10.0.0.4",))
    assert caught.value.details["holder"] == "a"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (("10.0.0.1",), "is the gateway"),
        (("10.0.0.0",), "is reserved"),
        (("10.0.0.7",), "is reserved"),
        (("10.0.1.2",), "is not in the network's range"),
        (("fd00::2",), "is not in the network's range"),
        (("ten",), "'ten' is no IP address"),
        (("10.0.0.2/24",), "is no IP address"),
        (("10.0.0.2", "10.0.0.3"), "want one"),
    ],
)
def test_an_address_that_cannot_be_had_is_refused(wanted: tuple[str, ...], said: str):
    addresses = pool()
    with pytest.raises(InvalidArgument, match=said):
        addresses.grant("a", wanted)
    assert addresses.grant("a") == ("10.0.0.2",)


@pytest.mark.parametrize(
    ("subnet", "gateway", "first"),
    [
        ("10.0.0.0/31", "10.0.0.0", "10.0.0.1"),
        ("fd00::/127", "fd00::1", "fd00::"),
        ("fd00::/64", "fd00::1", "fd00::2"),
        ("10.1.0.0/16", "10.1.255.254", "10.1.0.1"),
    ],
)
def test_the_edges_of_a_range_are_granted_where_they_mean_nothing_else(
    subnet: str, gateway: str, first: str
):
    assert pool(subnet, gateway).grant("a") == (first,)


def test_a_range_of_many_that_is_held_in_a_row_finds_the_hole_behind_it():
    addresses = pool("10.0.0.0/16")
    for number in range(2000):
        addresses.grant(f"k{number}")
    addresses.memory.cursors["10.0.0.0/16"] = "10.0.0.1"
    assert addresses.grant("new") == ("10.0.7.210",)


def test_what_is_remembered_of_old_keys_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(leases, "REMEMBERED", 3)
    addresses = pool("10.0.0.0/24")
    for number in range(9):
        addresses.grant(f"k{number}")
        addresses.release(f"k{number}")
    assert list(addresses.memory.last) == ["k6", "k7", "k8"]


def test_a_mac_is_derived_from_the_address_and_belongs_to_one_interface():
    assert mac_of("10.89.0.2") == "02:42:0a:59:00:02"
    macs = {mac_of(address, salt) for address in ("10.89.0.2", "fd00::2") for salt in range(3)}
    assert len(macs) == 6
    assert all(check_mac(mac) == mac for mac in macs)


@pytest.mark.parametrize(
    "mac", ["", "02:42", "01:00:5e:00:00:01", "00:00:00:00:00:00", "02:42:0A:59:00:0g"]
)
def test_a_mac_that_is_none_or_many_is_refused(mac: str):
    with pytest.raises(InvalidArgument):
        check_mac(mac)


def test_a_mac_is_read_in_other_spellings():
    assert check_mac("02-42-0A-59-00-02") == "02:42:0a:59:00:02"


FAST = "/dev/shm" if os.path.isdir("/dev/shm") else None


CRASHES = st.sampled_from(("", "", "", "before", "after"))


class Crash(Exception):
    """The helper is killed here."""


class LeasesWithCrashes(RuleBasedStateMachine):
    """Leases and what is written down of them, over lives of a helper that is killed anywhere.

    The world outside is `used`: which key was told which address, and uses it until it ends. A
    helper that is killed forgets all but its file; what it told stays in use.
    """

    granted = 0

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory(dir=FAST)
        self.folder = Path(self.temporary.name)
        self.used: dict[str, str] = {}
        self.row: list[str] = []
        self.start()

    def teardown(self) -> None:
        self.temporary.cleanup()

    def start(self) -> None:
        self.records = Records(self.folder)
        self.records.load()
        self.leases = Leases(("10.0.0.0/27",), ("10.0.0.1",), self.records.state.memory)
        for key, record in tuple(self.records.state.records.items()):
            self.leases.restore(key, record.addresses)
            if key not in self.used:
                # No interface: it ended, or was never made.
                self.leases.release(key)
                del self.records.state.records[key]
        self.records.save()

    def write(self, crash: str) -> None:
        if crash == "before":
            raise Crash
        self.records.save()
        if crash == "after":
            raise Crash

    @rule(number=st.integers(0, 40), crash=CRASHES)
    def attach(self, number: int, crash: str) -> None:
        self.attach_one(f"k{number}", crash)

    @rule(seed=st.integers(0, 2**32), count=st.integers(1, 100))
    def come_and_go(self, seed: int, count: int) -> None:
        """Many at once: what is drawn one by one costs more than what it draws."""
        chance = random.Random(seed)
        for _ in range(count):
            key = f"k{chance.randrange(41)}"
            crash = chance.choice(("",) * 8 + ("before", "after"))
            if key in self.used and chance.random() < 0.7:
                self.end_one(key, crash)
            else:
                self.attach_one(key, crash)

    def attach_one(self, key: str, crash: str) -> None:
        try:
            (address,) = self.leases.grant(key)
        except Overloaded:
            assert len(self.used) >= 29
            return
        type(self).granted += 1
        request = AttachmentRequest(key=key, interface="eth0", name=key)
        self.records.state.records[key] = Record(request, (address,), "", "ns")
        try:
            self.write(crash)
        except Crash:
            self.start()
            return
        if key in self.used:
            assert self.used[key] == address
        else:
            assert address not in self.used.values()
            self.used[key] = address

    @rule(number=st.integers(0, 40), wanted=st.integers(2, 30))
    def attach_at(self, number: int, wanted: int) -> None:
        key, address = f"k{number}", f"10.0.0.{wanted}"
        held = {at: who for who, at in self.used.items()}
        if held.get(address, key) != key or self.used.get(key, address) != address:
            with pytest.raises(ContainerError):
                self.leases.grant(key, (address,))
            return
        assert self.leases.grant(key, (address,)) == (address,)
        request = AttachmentRequest(key=key, interface="eth0", name=key)
        self.records.state.records[key] = Record(request, (address,), "", "ns")
        self.write("")
        self.used[key] = address

    @precondition(lambda self: self.used)
    @rule(data=st.data(), crash=CRASHES)
    def end(self, data: st.DataObject, crash: str) -> None:
        self.end_one(data.draw(st.sampled_from(sorted(self.used))), crash)

    def end_one(self, key: str, crash: str) -> None:
        del self.used[key]
        self.leases.release(key)
        self.records.state.records.pop(key, None)
        try:
            self.write(crash)
        except Crash:
            self.start()

    @rule()
    def kill(self) -> None:
        self.start()

    @invariant()
    def no_address_has_two_holders(self) -> None:
        assert len(set(self.used.values())) == len(self.used)

    @invariant()
    def what_is_used_is_held_and_written_down(self) -> None:
        for key, address in self.used.items():
            assert self.leases.holder(address) == key
            assert self.records.state.records[key].addresses == (address,)

    @invariant()
    def what_is_used_is_in_the_range(self) -> None:
        subnet = ipaddress.ip_network("10.0.0.0/27")
        assert all(ipaddress.ip_address(each) in subnet for each in self.used.values())


SETTINGS = settings(
    max_examples=20,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_five_thousand_leases_with_crashes_never_give_one_address_to_two():
    LeasesWithCrashes.granted = 0
    while LeasesWithCrashes.granted < 5000:
        run_state_machine_as_test(LeasesWithCrashes, settings=SETTINGS)
