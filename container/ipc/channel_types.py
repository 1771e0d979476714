"""How fields that are ends of channels are checked, and how they learn the type of their items."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

import cattrs

from container.ipc.contract import CHANNELS, holds_capabilities
from container.ipc.wirevalues import ItemType, SentEnd, WireChannel, WrongType

_SCALARS = (str, bytes, bool, int, float)


def register(converter: cattrs.Converter) -> None:
    """Teach a converter the two ends of channels."""

    def item_type(annotation: Any) -> ItemType:
        (item,) = typing.get_args(annotation)
        return ItemType(
            annotation=item,
            unstructure=_checked(item)
            if item in _SCALARS
            else converter.get_unstructure_hook(item),
            structure=converter.get_structure_hook(item),
            holds=holds_capabilities(item),
        )

    def end_out(annotation: Any) -> Callable[[Any], Any]:
        item = item_type(annotation)
        reads = _reads(annotation)

        def unstructure(value: Any) -> Any:
            if not isinstance(value, SentEnd):
                raise ValueError(
                    f"expected an end of a channel made by open_channel, "
                    f"found {type(value).__name__}"
                )
            if value.reads is not reads:
                raise ValueError(f"expected the {_word(reads)} end of a channel")
            value.item = item
            return value

        return unstructure

    def end_in(annotation: Any) -> Callable[[Any, Any], Any]:
        item = item_type(annotation)
        reads = _reads(annotation)

        def structure(value: Any, _: Any) -> Any:
            if type(value) is not WireChannel:
                raise WrongType("channel", value)
            if value.end.reads is not reads:
                raise ValueError(f"expected the {_word(reads)} end of a channel")
            end = value.claim()
            end.item = item
            return end

        return structure

    converter.register_unstructure_hook_factory(_is_end, end_out)
    converter.register_structure_hook_factory(_is_end, end_in)


def _checked(kind: type) -> Callable[[Any], Any]:
    """Return what passes a scalar item on, and refuses another at its writer, not its reader."""

    def unstructure(value: Any) -> Any:
        if type(value) is kind:
            return value
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if not fits and not (kind is float and type(value) is int):
            raise WrongType(kind.__name__, value)
        return value

    return unstructure


def _is_end(annotation: Any) -> bool:
    return typing.get_origin(annotation) in CHANNELS


def _reads(annotation: Any) -> bool:
    return typing.get_origin(annotation) is CHANNELS[1]


def _word(reads: bool) -> str:
    return "reading" if reads else "writing"
