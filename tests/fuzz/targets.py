"""What is fuzzed, by name; a fault planted on purpose; and the inputs to begin with."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import msgspec

from container.ipc.wire.events import OpenedReceived
from container.ipc.wire.frames import FROM_CALLEE, SCOPE, Kind, OpenedPayload, pack
from container.ipc.wire.framing import Payload
from container.ipc.wire.machine import Machine
from tests.fuzz.dns_targets import dns_answer, dns_query
from tests.fuzz.dns_targets import seeds as dns_seeds
from tests.fuzz.machine_target import PLAN_BYTES, machine
from tests.fuzz.value_targets import codec, message

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
"""A folder a target; every file in it is also a test."""
_decode = msgspec.msgpack.Decoder(OpenedPayload).decode


class Planted(Machine):
    """A machine with one fault: an opened frame that can't be read loses its descriptors."""

    def _opened(
        self, number: int, payload: Payload, count: int, sender: Hashable
    ) -> OpenedReceived:
        event = super()._opened(number, payload, count, sender)
        try:
            _decode(payload)
        except msgspec.MsgspecError:
            event.descriptors = []
        return event


def planted(data: bytes) -> None:
    """Feed the machine with the fault."""
    machine(data, Planted)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "machine": machine,
    "codec": codec,
    "message": message,
    "dns_query": dns_query,
    "dns_answer": dns_answer,
}


def seeds() -> dict[str, list[bytes]]:
    """Return the inputs to begin with, by target: of the wire, what the golden frames give."""
    golden = json.loads((ROOT / "docs" / "reference" / "golden.json").read_text())
    talk = golden["conversation"]

    def frames(side: str, *, hello: bool) -> bytes:
        return b"".join(
            bytes.fromhex(entry["hex"])
            for entry in talk
            if entry["from"] == side and (hello or entry["kind"] != "HELLO")
        )

    machines = [bytes(PLAN_BYTES) + frames(side, hello=False) for side in ("client", "server")]
    for step in (0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60):
        side = "client" if step < 0x40 else "server"
        plan = bytes([0]) + bytes([0, step]) * 7 + bytes([0])
        machines.append(plan + frames(side, hello=False))
    opening = bytes([1]) + bytes(PLAN_BYTES - 1)
    machines += [opening + frames(side, hello=True) for side in ("client", "server")]
    machines += [
        (opening if entry["when"] == "opening" else bytes(PLAN_BYTES)) + bytes.fromhex(entry["hex"])
        for entry in golden["refused"]
    ]
    machines += [bytes(PLAN_BYTES) + frame for frame in _single_frames()]
    values = [bytes.fromhex(entry["hex"]) for entry in golden["values"]]
    keyed = [b"\x81\xa1a" + value for value in values]
    return {
        "machine": machines,
        "codec": [bytes([0x12]) + body for body in (*keyed, *_arguments())]
        + [bytes([0x08]) + value for value in values],
        "message": [b"\x02" + body for body in keyed],
        **dns_seeds(),
    }


def _single_frames() -> list[bytes]:
    """Return frames that carry descriptors, each legal as the first one after the hello."""
    fd: Any = msgspec.msgpack.Ext(2, b"\0")
    made: list[bytes] = []
    for kind, flags, number, payload in (
        (Kind.CALL, 0, 1, ("a/b", None, 1, None, {"fd": fd})),
        (Kind.CALL, SCOPE, 1, ("a/b", None, 1, None, {"fd": fd}, [(1, 1, 16, 64)])),
        (Kind.REPLY, FROM_CALLEE, 1, (fd,)),
        (Kind.OPENED, FROM_CALLEE, 6, (fd, [(2, 0, 16, 64)])),
    ):
        made.append(pack(kind, number, msgspec.msgpack.encode(payload), flags=flags, descriptors=1))
    return made


def _arguments() -> list[bytes]:
    fd: Any = msgspec.msgpack.Ext(2, b"\0")
    port = {"host": "a", "number": 1}
    tree = {"name": "a", "labels": {"b": port}, "colour": "blue", "mode": "fast", "ratio": 1.5}
    return [
        msgspec.msgpack.encode(value)
        for value in (
            {"text": "a", "number": 1, "flag": True},
            {"tree": {**tree, "children": [tree], "data": b"x"}, "ports": [port]},
            {"stdio": {"stdin": fd, "more": []}},
            {"value": None, "more": [1, "a"]},
        )
    ]


def write_seeds() -> None:
    """Write the corpus anew; what the fuzzer found stays."""
    for target, inputs in seeds().items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("golden-*"):
            old.unlink()
        for number, data in enumerate(inputs):
            (folder / f"golden-{number:03}").write_bytes(data)
