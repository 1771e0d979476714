"""The host's servers, read from its file as it is now."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from container.resolver.resolv_conf import Host, ResolvConf


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("", Host()),
        ("nameserver 127.0.0.53\noptions edns0\nsearch Lan. a.example\n",
         Host(("127.0.0.53",), ("lan", "a.example"))),
        ("nameserver 1.1.1.1 # first\nnameserver\t::1\nnameserver fe80::1%eth0\n"
         "nameserver 9.9.9.9", Host(("1.1.1.1", "::1", "fe80::1%eth0"))),
        ("; comment\n#nameserver 1.2.3.4\nnameserver example.com\nnameserver\nnameservers 1.2.3.4",
         Host()),
        ("nameserver 1.1.1.1\nnameserver 1.1.1.1\n", Host(("1.1.1.1",))),
        ("domain a.example\nsearch b.example\n", Host(search=("b.example",))),
        ("search .\n", Host()),
    ],
)  # fmt: skip
def test_what_a_file_says(text: str, host: Host) -> None:
    assert Host.read(text) == host


def test_a_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    conf = ResolvConf(file)
    assert conf.host() == Host()
    file.write_text("nameserver 192.0.2.1\n")
    assert conf.host().nameservers == ("192.0.2.1",)
    new = tmp_path / "new"
    new.write_text("nameserver 192.0.2.2\n")
    os.rename(new, file)
    assert conf.host().nameservers == ("192.0.2.2",)
    file.unlink()
    assert conf.host() == Host()


def test_a_link_that_leads_elsewhere_is_followed_anew(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}").write_text(f"nameserver 192.0.2.{number}\n")
    link = tmp_path / "resolv.conf"
    link.symlink_to("1")
    conf = ResolvConf(link)
    assert conf.host().nameservers == ("192.0.2.1",)
    link.unlink()
    link.symlink_to("2")
    assert conf.host().nameservers == ("192.0.2.2",)


def test_a_file_that_can_not_be_read_as_text_names_nobody(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_bytes(os.urandom(100_000))
    assert ResolvConf(tmp_path / "resolv.conf").host().nameservers == ()
    assert ResolvConf(tmp_path).host() == Host()
