"""Who has which name in a network, as the DNS server asks for it."""

from __future__ import annotations

import pytest
import trio

from container.ipc import NotFound, Unavailable
from container.resolver import Client, Entry, Found, Names

SUBNETS = ("10.89.0.0/24", "fd00::/64")
GATEWAYS = ("10.89.0.1", "fd00::1")
WEB = Entry("k1", ("10.89.0.2", "fd00::2"), ("web", "abc123", "www"), search=("Example.com.",))
DB = Entry("k2", ("10.89.0.3",), ("db", "WWW"))


def names(*entries: Entry, **options: object) -> Names:
    """Return the names of a network with these."""
    made = Names(SUBNETS, GATEWAYS, **options)  # type: ignore[arg-type]
    for entry in entries:
        made.put(entry)
    return made


def test_a_name_that_several_have_has_the_addresses_of_all() -> None:
    known = names(WEB, DB)
    assert known.addresses("web") == ("10.89.0.2", "fd00::2")
    assert known.addresses("www") == ("10.89.0.2", "fd00::2", "10.89.0.3")
    assert known.addresses("nobody") is None


def test_the_host_is_the_gateway_and_nobody_takes_its_name() -> None:
    known = names(Entry("k", ("10.89.0.9",), ("host.container.internal",)))
    assert known.addresses("host.container.internal") == GATEWAYS
    known.remove("k")
    assert known.addresses("host.container.internal") == GATEWAYS
    assert known.find("Host.Container.Internal.") == (Found("host.container.internal", GATEWAYS),)


def test_what_is_removed_is_known_no_more_and_others_stay() -> None:
    known = names(WEB, DB)
    known.remove("k1")
    known.remove("k1")
    assert known.addresses("web") is None
    assert known.addresses("www") == ("10.89.0.3",)
    assert known.names_of("10.89.0.2") == ()


def test_what_is_put_again_takes_the_place_of_what_was() -> None:
    known = names(WEB)
    known.put(Entry("k1", ("10.89.0.7",), ("web",)))
    assert known.addresses("web") == ("10.89.0.7",)
    assert known.addresses("www") is None
    assert known.names_of("10.89.0.2") == ()


def test_an_address_that_went_to_another_is_not_taken_from_it_with_the_first() -> None:
    known = names(WEB)
    known.put(Entry("later", ("10.89.0.2",), ("later",)))
    known.remove("k1")
    assert known.names_of("10.89.0.2") == ("later",)
    assert known.client("10.89.0.2") == Client()


def test_addresses_have_names_in_our_ranges_only() -> None:
    known = names(WEB)
    assert known.names_of("fd00::2") == ("web", "abc123", "www")
    assert known.names_of("10.89.0.1") == ("host.container.internal",)
    assert known.names_of("10.89.0.200") == ()
    assert known.names_of("10.90.0.2") is None


def test_who_is_in_no_range_of_ours_is_nobody() -> None:
    known = names(WEB, internal=True)
    assert known.client("10.89.0.2") == Client(search=("example.com",), forwards=False)
    assert known.client("10.89.0.77") == Client(forwards=False)
    assert known.client("192.0.2.1") is None
    assert known.client("fe80::1%eth0") is None


def test_lookup_finds_names_and_addresses_in_any_case() -> None:
    known = names(WEB, DB)
    web = Found("web", ("10.89.0.2", "fd00::2"))
    assert known.find("WEB.") == (web,)
    assert known.find("FD00:0::2") == (web,)
    assert known.find("www") == (web, Found("db", ("10.89.0.3",)))
    assert known.find("10.89.0.9") == known.find("no name at all!") == ()


class Neighbours:
    """Other networks: `one` knows db, `two` knows db and cache, `broken` fails, `mute` waits."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def __call__(self, network: str, name: str) -> tuple[Found, ...]:
        self.asked.append((network, name))
        if network == "broken":
            raise NotFound("no such network")
        if network == "mute":
            await trio.sleep_forever()
        known = {
            ("one", "db"): (Found("db", ("10.90.0.2",)),),
            ("two", "db"): (Found("db", ("10.91.0.2",)),),
            ("two", "cache"): (Found("cache", ("10.91.0.3", "fd01::3")),),
            ("two", "10.91.0.3"): (Found("cache", ("10.91.0.3", "fd01::3")),),
        }
        return known.get((network, name), ())


def with_neighbours(*networks: str) -> Names:
    """Return names with one entry, at 10.89.0.2, that is in these other networks."""
    entry = Entry("k", ("10.89.0.2",), ("web",), neighbours=networks)
    return names(entry, ask=Neighbours())


async def test_the_first_other_network_that_knows_a_name_gives_it() -> None:
    known = with_neighbours("one", "two")
    assert known.client("10.89.0.2") == Client(elsewhere=True)
    assert await known.addresses_elsewhere("10.89.0.2", "db") == ("10.90.0.2",)
    assert await known.addresses_elsewhere("10.89.0.2", "cache") == ("10.91.0.3", "fd01::3")
    assert await known.addresses_elsewhere("10.89.0.2", "nobody") is None
    assert await known.names_elsewhere("10.89.0.2", "10.91.0.3") == ("cache",)
    assert await known.names_elsewhere("10.89.0.2", "10.91.0.9") is None


async def test_who_is_in_one_network_asks_no_other() -> None:
    known = names(WEB, ask=Neighbours())
    assert await known.addresses_elsewhere("10.89.0.2", "db") is None
    assert await known.addresses_elsewhere("10.89.0.200", "db") is None


async def test_a_network_that_does_not_tell_is_passed_over_if_another_does(
    autojump_clock: trio.testing.MockClock,
) -> None:
    known = with_neighbours("broken", "mute", "two")
    began = trio.current_time()
    assert await known.addresses_elsewhere("10.89.0.2", "cache") == ("10.91.0.3", "fd01::3")
    assert trio.current_time() - began == 1.0
    with pytest.raises(Unavailable, match="network broken does not tell whether it knows nobody"):
        await known.addresses_elsewhere("10.89.0.2", "nobody")
