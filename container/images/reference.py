"""References: what people write for an image, and the one form in which it is stored. No I/O.

A reference is `[registry/]repository[:tag][@digest]`. The part before the first slash is a
registry if it has a dot, a colon or an upper-case letter, or is `localhost`; otherwise the
default registry is meant. What is loaded under a name without a registry belongs to the registry
`localhost`, and a name without a registry finds that one first.

Source: the reference grammar of the OCI distribution specification and of distribution/reference.
"""

from __future__ import annotations

import re

from attrs import frozen

from container.ipc import InvalidArgument
from container.storage.blobs import split_digest
from container.storage.settings import DEFAULT_REGISTRY

LOCAL = "localhost"
DEFAULT_TAG = "latest"
_OFFICIAL = "library/"

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_REGISTRY = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{7,64})")
_LONGEST = 255


@frozen
class Reference:
    """A reference, complete: `str()` is the form in which it is stored and shown in full."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None = None
    """When it is there the tag says nothing any more, and is left out."""

    def __str__(self) -> str:
        name = f"{self.registry}/{self.repository}"
        return f"{name}@{self.digest}" if self.digest else f"{name}:{self.tag}"

    def short_name(self, default_registry: str) -> str:
        """Return the name alone, as short as it may be written."""
        if self.registry == LOCAL:
            return self.repository
        if self.registry != default_registry:
            return f"{self.registry}/{self.repository}"
        if self.registry == DEFAULT_REGISTRY:
            return self.repository.removeprefix(_OFFICIAL)
        return self.repository


def parse(text: str, registry: str) -> Reference:
    """Read a reference.

    Args:
        text: As the person wrote it.
        registry: Where a name without a registry belongs.

    Raises:
        InvalidArgument: it is none; says the rule.
    """
    host, repository, tag, digest = _split(text)
    if host is None:
        host = registry
        if registry == DEFAULT_REGISTRY and "/" not in repository:
            repository = _OFFICIAL + repository
    elif host in ("index.docker.io", "registry-1.docker.io"):
        host = DEFAULT_REGISTRY
    if host == DEFAULT_REGISTRY and "/" not in repository:
        repository = _OFFICIAL + repository
    if digest is not None:
        return Reference(host, repository, None, digest)
    return Reference(host, repository, tag or DEFAULT_TAG)


def has_registry(text: str) -> bool:
    """Say whether a reference names its registry."""
    return _split(text)[0] is not None


def candidates(text: str, default_registry: str) -> tuple[Reference, ...]:
    """Return what a reference may mean in a store, the first choice first."""
    found = parse(text, default_registry)
    if has_registry(text):
        return (found,)
    return parse(text, LOCAL), found


def digest_prefix(text: str) -> str | None:
    """Return the hex digits if the text may be a digest, or at least 7 digits of one."""
    found = _DIGEST_PREFIX.fullmatch(text)
    return found[1] if found else None


def _split(text: str) -> tuple[str | None, str, str | None, str | None]:
    rest, separator, digest = text.partition("@")
    if separator:
        split_digest(digest)
    host: str | None = None
    first, slash, remainder = rest.partition("/")
    if slash and (first == LOCAL or any(c in ".:[" or c.isupper() for c in first)):
        host, rest = first, remainder
        if not _REGISTRY.fullmatch(host):
            raise _invalid(text, f'"{host}" is no host')
    repository, colon, tag = rest.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _invalid(
            text, "a tag has 1 to 128 letters, digits, _ . - and begins with none of . -"
        )
    if not _REPOSITORY.fullmatch(repository):
        if repository != repository.lower():
            raise _invalid(text, "image names are lower-case")
        raise _invalid(text, "a name has lower-case letters and digits, separated by . _ - or /")
    if len(repository) > _LONGEST:
        raise _invalid(text, f"a name has at most {_LONGEST} characters")
    return host, repository, tag if colon else None, digest if separator else None


def _invalid(text: str, rule: str) -> InvalidArgument:
    shown = text if len(text) <= 300 else text[:300] + "…"
    return InvalidArgument(f'"{shown}" is no image name', hint=rule)
