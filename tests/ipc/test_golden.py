"""The golden frames beside the specification are what this code says and understands."""

from __future__ import annotations

import json
import os
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from container.ipc.channel import open_channel
from container.ipc.message import Message
from container.ipc.wire.channels import Channel
from container.ipc.wire.frames import FROM_CALLEE, HEADER, MAGIC, SCOPE, EndedBy, Gift, Kind
from container.ipc.wire.limits import Limits
from container.ipc.wire.machine import Budget, Machine, ProtocolError
from container.ipc.wirevalues import Incoming, uuid_out

GOLDEN = json.loads((Path(__file__).parents[2] / "docs" / "reference" / "golden.json").read_text())
CONVERSATION = GOLDEN["conversation"]
encode = msgspec.msgpack.encode


def wire(value: Any) -> Any:
    """Return a value as msgspec encodes it: `{"$type": ...}` stands for what JSON lacks."""
    if isinstance(value, list):
        return [wire(item) for item in value]
    if not isinstance(value, dict):
        return value
    match next(iter(value.items()), None):
        case ("$bytes", text):
            return bytes.fromhex(text)
        case ("$date", text):
            return datetime.fromisoformat(text)
        case ("$uuid", text):
            return uuid_out(uuid.UUID(text))
        case ("$float", number):
            return float(number)
        case ("$descriptor", index):
            return msgspec.msgpack.Ext(2, encode(index))
        case ("$endpoint", body):
            return msgspec.msgpack.Ext(3, encode(body))
        case ("$channel", body):
            return msgspec.msgpack.Ext(4, encode(body))
        case _:
            return {key: wire(item) for key, item in value.items()}


def frame_of(entry: dict[str, Any]) -> bytes:
    """Return the frame that an entry describes, from its description alone."""
    payload = b"" if entry["payload"] is None else encode(wire(entry["payload"]))
    number = MAGIC if entry["id"] == "magic" else entry["id"]
    kind = Kind[entry["kind"]]
    return HEADER.pack(len(payload), kind, entry["flags"], entry["descriptors"], number) + payload


def machines() -> dict[str, Machine]:
    """Return both ends, nothing said."""
    limits = Limits(frame_bytes=1048576, frame_descriptors=32, in_flight=64, channels=16)
    return {side: Machine(limits, Budget(1 << 20)) for side in ("client", "server")}


def names(entries: list[dict[str, Any]]) -> list[str]:
    """Return what the entries are called, for test ids."""
    return [entry["name"] for entry in entries]


@pytest.mark.parametrize("entry", CONVERSATION, ids=names(CONVERSATION))
def test_a_frame_is_made_of_its_description(entry: dict[str, Any]) -> None:
    assert frame_of(entry).hex() == entry["hex"].replace(" ", "")


def test_every_kind_has_a_golden_frame() -> None:
    assert {entry["kind"] for entry in CONVERSATION} == {kind.name for kind in Kind}


def _said(side: Machine, entry: dict[str, Any]) -> bytes:
    """Make a machine say what an entry describes."""
    number, payload, count = entry["id"], wire(entry["payload"]), entry["descriptors"]
    made_here = not entry["flags"] & FROM_CALLEE
    match Kind[entry["kind"]]:
        case Kind.HELLO:
            return side.hello({k: tuple(v) for k, v in payload[3].items()}, *payload[4:])
        case Kind.CALL:
            begin = side.open_scope if entry["flags"] & SCOPE else side.call
            made, data = begin(encode(payload), count)
            assert made == number
            _give(side, made_here, number, payload[5:])
            return data
        case Kind.REPLY:
            return side.reply(number, encode(payload), count)
        case Kind.ERROR:
            return side.error(number, EndedBy(payload[0]), payload[1])
        case Kind.CANCEL:
            return side.cancel(number, *payload)
        case Kind.OPENED:
            data = side.opened(number, encode(payload), count)
            _give(side, made_here, number, payload[1:])
            return data
        case Kind.CLOSE:
            return side.close(number, *payload)
        case Kind.ITEM:
            value = encode(payload[1])
            return side.channels.item(made_here, number, _channel(side, entry), value, count)
        case Kind.CREDIT:
            return side.channels.credit(made_here, number, _channel(side, entry), *payload[1:])
        case Kind.END:
            return side.channels.end(made_here, number, _channel(side, entry), payload[1])
        case Kind.STOP:
            return side.channels.stop(made_here, number, _channel(side, entry), payload[1])
        case Kind.PING:
            return side.ping()
        case Kind.PONG:
            return side.pong(number)
        case Kind.GOODBYE:
            return side.goodbye(payload[1])


def _give(side: Machine, made_here: bool, number: int, gifts: list[Any]) -> None:
    if gifts:
        made = [msgspec.convert(gift, Gift) for gift in gifts[0]]
        side.channels.give(made_here, number, side.incoming and "client", made)


def _channel(side: Machine, entry: dict[str, Any]) -> Channel:
    call = side.channels.of(not entry["flags"] & FROM_CALLEE, entry["id"])
    assert call is not None
    return call.live[entry["payload"][0]]


def _told(event: object) -> dict[str, Any]:
    """Return an event as the file writes it."""
    fields: dict[str, Any] = {}
    for name in (
        *("id", "token", "last", "within", "grace", "abandoned", "compatible"),
        *("scope", "dropped", "failed", "made_here", "size"),
    ):
        if hasattr(event, name):
            fields[name] = getattr(event, name)
    if hasattr(event, "descriptors"):
        fields["descriptors"] = len(event.descriptors)
    if hasattr(event, "ended_by"):
        fields["ended_by"] = event.ended_by.name
    if hasattr(event, "error"):
        fields["error"] = event.error
    if hasattr(event, "channel"):
        fields["channel"] = event.channel.number
        fields["credit"] = [event.channel.items, event.channel.bytes]
    if hasattr(event, "channels"):
        fields["channels"] = [channel.number for channel in event.channels]
    payload = getattr(event, "payload", None)
    if hasattr(payload, "route"):
        fields |= {"route": payload.route, "timeout": payload.timeout, "trace": payload.trace}
        fields["grace"] = payload.grace
    if hasattr(payload, "process"):
        fields |= {"process": payload.process, "limits": payload.limits}
    return {"event": type(event).__name__, **fields}


def test_the_conversation_is_said_and_understood_as_the_file_has_it() -> None:
    ends = machines()
    for entry in CONVERSATION:
        speaker = ends[entry["from"]]
        hearer = ends["server" if entry["from"] == "client" else "client"]
        data = _said(speaker, entry)
        assert data.hex() == entry["hex"].replace(" ", ""), entry["name"]
        descriptors = tuple(range(100, 100 + entry["descriptors"]))
        events = hearer.receive(data, descriptors, entry["from"])
        assert [_told(event) for event in events] == [entry["event"]], entry["name"]


@pytest.mark.parametrize("entry", GOLDEN["values"], ids=names(GOLDEN["values"]))
def test_a_value_is_encoded_as_the_file_has_it_and_read_back(entry: dict[str, Any]) -> None:
    assert encode(wire(entry["value"])).hex() == entry["hex"].replace(" ", "")
    body = b"\x81\xa1x" + bytes.fromhex(entry["hex"])
    received = Incoming.of([os.open("/dev/null", os.O_RDONLY)])
    received.ends = open_channel(int)[:1]
    with Message.decode("a/b", body, received) as message:
        assert message.type_of("x") == entry["type"]
        if not {"descriptor", "endpoint", "channel"} & {entry["type"]}:
            assert message.encode()[0] == body


@pytest.mark.parametrize("entry", GOLDEN["refused"], ids=names(GOLDEN["refused"]))
def test_what_the_file_says_is_refused_ends_the_connection(entry: dict[str, Any]) -> None:
    it = machines()["server"] if entry["when"] == "opening" else _listening()
    descriptors = tuple(range(100, 100 + entry["descriptors"]))
    with pytest.raises(ProtocolError, match=entry["why"]):
        it.receive(bytes.fromhex(entry["hex"]), descriptors, "peer")
    assert len(it.abandon()) == entry["descriptors"]


def _listening() -> Machine:
    ends = machines()
    ends["client"].receive(ends["server"].hello({}, "server", "0"), (), "peer")
    ends["client"].hello({}, "client", "0")
    return ends["client"]
