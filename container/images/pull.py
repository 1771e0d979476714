"""Fetch one image: manifest (the platform's of an index), configuration, layers side by side.

What was fetched is in the store under its digest when this returns, and no reference names it yet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import trio

from container.contracts.images import Platform, Scheme
from container.images.manifest import (
    Descriptor,
    Index,
    Manifest,
    parse_configuration,
    parse_manifest,
)
from container.images.platforms import rank
from container.images.reference import Reference
from container.images.store import Store, stored_image
from container.ipc import ContainerError, DataLoss, NotFound, Unsupported
from container.storage.blobs import split_digest


async def fetch_image(
    store: Store,
    reference: Reference,
    shown: str,
    platform: Platform,
    scheme: Scheme,
    *,
    pin: Callable[[str], None],
    exclusive: Callable[[str], AbstractAsyncContextManager[None]],
    downloads: trio.CapacityLimiter,
) -> str:
    """Fetch an image into a store; return the digest of its manifest or index.

    Cancellation leaves verified blobs and nothing else.

    Args:
        store: Where to.
        reference: What to fetch.
        shown: As the person wrote it.
        platform: Which of an index's images.
        scheme: How to talk to the registry.
        pin: Called with each digest before its blob is in the store.
        exclusive: The section of one blob, so that it is fetched once.
        downloads: Bound of what is fetched at once.
    """
    # The client takes 150 ms to import, and most runs pull nothing.
    from container.images.registry import Registry

    repository = reference.repository
    async with Registry(reference.registry, scheme, store.limits) as registry:

        async def fetch(wanted: Descriptor) -> None:
            pin(wanted.digest)
            async with exclusive(f"blob {wanted.digest}"):
                if not store.blobs.has(wanted.digest, wanted.size):
                    async with downloads:
                        await registry.blob(repository, wanted, store.blobs)

        async def fetch_all(layers: tuple[Descriptor, ...]) -> None:
            failures: list[ContainerError] = []

            async def fetch_one(layer: Descriptor) -> None:
                try:
                    await fetch(layer)
                except ContainerError as error:
                    failures.append(error)
                    nursery.cancel_scope.cancel()

            async with trio.open_nursery() as nursery:
                for layer in {layer.digest: layer for layer in layers}.values():
                    nursery.start_soon(fetch_one, layer)
            if failures:
                raise failures[0]

        async def add(raw: bytes, digest: str) -> None:
            pin(digest)

            def write() -> None:
                with store.blobs.write(split_digest(digest)[0]) as writer:
                    writer.write(raw)
                    writer.commit(digest)

            await trio.to_thread.run_sync(write)

        try:
            raw, digest = await registry.manifest(
                repository, reference.digest or reference.tag or "latest"
            )
        except NotFound as error:
            raise NotFound(
                f'the registry {reference.registry} has no image "{shown}"',
                hint="check the name and the tag",
            ) from error
        documents = [(raw, digest)]
        document = parse_manifest(raw)
        while isinstance(document, Index):
            if len(documents) > store.limits.nesting:
                raise DataLoss(f'image "{shown}" is malformed: an index in an index in an index')
            entry = _choose(document, platform, shown)
            raw, found = await registry.manifest(repository, entry.digest)
            documents.append((raw, found))
            document = parse_manifest(raw)
        if len(document.layers) > store.limits.layers:
            raise Unsupported(f'image "{shown}" has more than {store.limits.layers} layers')
        await _configuration(store, document, documents[-1][1], platform, shown, fetch)
        await fetch_all(document.layers)
        for raw, found in documents:
            await add(raw, found)
    return digest


async def _configuration(
    store: Store,
    manifest: Manifest,
    digest: str,
    platform: Platform,
    shown: str,
    fetch: Callable[[Descriptor], Awaitable[None]],
) -> None:
    """Fetch the configuration, and refuse the image before its layers if it can't be run."""
    await fetch(manifest.config)
    raw = await trio.to_thread.run_sync(
        store.blobs.read, manifest.config.digest, store.limits.document
    )
    image = stored_image(digest, manifest, parse_configuration(raw))
    if rank(image.platform, platform) is None:
        raise _unsupported(shown, [image.platform], platform)


def _choose(index: Index, platform: Platform, shown: str) -> Descriptor:
    offers: list[Platform] = []
    best: tuple[int, Descriptor] | None = None
    for entry in index.manifests:
        offered = entry.offered()
        if offered is None:
            if not entry.is_attestation() and best is None and len(index.manifests) == 1:
                return entry  # It does not say; its configuration will.
            continue
        offers.append(offered)
        fit = rank(offered, platform)
        if fit is not None and (best is None or fit < best[0]):
            best = fit, entry
    if best is None:
        raise _unsupported(shown, offers, platform)
    return best[1]


def _unsupported(shown: str, offers: list[Platform], wanted: Platform) -> Unsupported:
    names = sorted({str(offer) for offer in offers})
    return Unsupported(
        f'image "{shown}" is for {", ".join(names) or "no known platform"} only, not {wanted}',
        hint="name another platform, if this machine can run it",
        details={"platforms": names},
    )
