"""One registry, spoken to as the OCI distribution specification says: to read, not to write.

Anonymous, with the bearer token that a registry gives to anybody; every answer is checked against
its digest while it streams. Redirects are followed (registries keep blobs elsewhere), but never
from HTTPS to HTTP, and the token does not go to another host. What is *not* here: what an image
is made of.

Source: OCI distribution-spec v1.1, "Pull"; distribution's token authentication.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import TracebackType
from typing import Self, cast
from urllib.parse import quote

import httpx2
import msgspec
import trio

from container import __version__
from container.contracts.images import Scheme
from container.images.limits import Limits
from container.images.malformed import Malformed
from container.images.manifest import ACCEPTED, Descriptor
from container.ipc import DataLoss, NotFound, Overloaded, PermissionDenied, Unavailable
from container.storage.blobs import Blobs, split_digest
from container.storage.settings import DEFAULT_REGISTRY

_HUB = "registry-1.docker.io"
_REDIRECTS = 5
_BATCH = 1 << 20
"""Bytes that are hashed and written in one visit to a thread."""
_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL")
"""OpenSSL's words for an answer that is not TLS at all."""
_BROKEN_WAY = "try again; if it stays so, the registry or a proxy on the way is broken"
_PARAMETER = re.compile(r'([a-zA-Z]+)="([^"]*)"')


class _Token(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None


class Registry:
    """A client of one registry; use it as an async context manager.

    Args:
        host: `host` or `host:port`, as in references.
        scheme: How to talk to it.
        limits: Time-outs and sizes.
    """

    def __init__(self, host: str, scheme: Scheme, limits: Limits) -> None:
        self._host = host
        self._scheme = scheme
        self._limits = limits
        self._authority = _HUB if host == DEFAULT_REGISTRY else host
        self._base = ""
        self._tokens: dict[str, str] = {}
        self._client: httpx2.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        # In a thread, as reading all certificates takes some 20 ms. SSL_CERT_FILE is honoured.
        context = await trio.to_thread.run_sync(ssl.create_default_context)
        self._client = httpx2.AsyncClient(
            verify=context,
            # A loopback registry is this machine's own: no proxy can reach it.
            trust_env=not is_loopback(self._authority),
            timeout=httpx2.Timeout(
                self._limits.stall_timeout, connect=self._limits.connect_timeout
            ),
            headers={"User-Agent": f"container/{__version__}", "Accept-Encoding": "identity"},
        )
        try:
            self._base = await self._find()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    async def manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
        """Fetch a manifest or an index by tag or digest; return it and its digest.

        Raises:
            NotFound: the registry has none.
            PermissionDenied, Unavailable, DataLoss: as for any answer.
        """
        url = f"{self._base}/v2/{repository}/manifests/{quote(reference, safe=':')}"
        parts: list[bytes] = []
        async with self._get(url, repository, {"Accept": ", ".join(ACCEPTED)}) as response:
            size = 0
            async with _body(response) as pieces:
                async for data in pieces:
                    size += len(data)
                    if size > self._limits.document:
                        raise Overloaded(
                            f"the manifest has more than {self._limits.document} bytes"
                        )
                    parts.append(data)
        raw = b"".join(parts)
        wanted = reference if ":" in reference else response.headers.get("Docker-Content-Digest")
        algorithm = split_digest(wanted)[0] if wanted else "sha256"
        found = _digest(algorithm, raw)
        if wanted and wanted != found:
            raise DataLoss(
                f"{self._host} sent a manifest with another digest: {wanted} was announced, "
                f"{found} came",
                hint=_BROKEN_WAY,
                details={"digest": wanted, "found": found},
            )
        return raw, found

    async def blob(self, repository: str, wanted: Descriptor, blobs: Blobs) -> None:
        """Fetch a blob into the store, digest and size checked on the way.

        Cancellation leaves nothing.

        Raises:
            DataLoss: it is not what its descriptor says.
            NotFound, PermissionDenied, Unavailable: as for any answer.
        """
        if wanted.size > self._limits.blob:
            raise Overloaded(f"a layer has more than {self._limits.blob} bytes")
        url = f"{self._base}/v2/{repository}/blobs/{wanted.digest}"
        async with self._get(url, repository, {}) as response:
            with blobs.write(split_digest(wanted.digest)[0]) as writer:
                batch = bytearray()
                async with _body(response) as pieces:
                    async for data in pieces:
                        batch += data
                        if writer.size + len(batch) > wanted.size:
                            raise DataLoss(
                                f"{self._host} sent more than the {wanted.size} bytes of "
                                f"{wanted.digest}",
                                hint=_BROKEN_WAY,
                                details={"digest": wanted.digest},
                            )
                        if len(batch) >= _BATCH:
                            await trio.to_thread.run_sync(writer.write, bytes(batch))
                            batch.clear()
                await trio.to_thread.run_sync(writer.write, bytes(batch))
                try:
                    await trio.to_thread.run_sync(writer.commit, wanted.digest, wanted.size)
                except DataLoss as error:
                    raise DataLoss(
                        f"{self._host} sent other data: {error.message}",
                        hint=_BROKEN_WAY,
                        details=error.details,
                    ) from error

    # One request.

    async def _find(self) -> str:
        """Find out how the registry is talked to."""
        secure, plain = f"https://{self._authority}", f"http://{self._authority}"
        if self._scheme is Scheme.HTTP:
            await self._ping(plain)
            return plain
        try:
            await self._ping(secure)
        except Unavailable as error:
            # It answers, but not in TLS. Somebody between us and a remote registry could cause
            # that too, so only this machine is believed.
            if self._scheme is Scheme.HTTPS or not is_loopback(self._authority):
                raise
            if not error.details.get("no_tls"):
                raise
            await self._ping(plain)
            return plain
        return secure

    async def _ping(self, base: str) -> None:
        with self._errors():
            response = await self._open.get(f"{base}/v2/")
        if response.status_code >= 500:
            raise self._unexpected(response)

    @asynccontextmanager
    async def _get(
        self, url: str, repository: str, headers: dict[str, str]
    ) -> AsyncGenerator[httpx2.Response]:
        """Ask for something, with a token if one is wanted, through redirects."""
        request = self._request(url, repository, headers)
        challenged = False
        for _ in range(_REDIRECTS + 2):
            with self._errors():
                response = await self._open.send(request, stream=True)
            try:
                if response.status_code == 200:
                    with self._errors():
                        yield response
                    return
                if response.next_request is not None:
                    following = response.next_request
                    if request.url.scheme == "https" and following.url.scheme != "https":
                        raise Unavailable(
                            f"{self._host} redirects from HTTPS to HTTP, which is not followed"
                        )
                    request = following
                elif response.status_code == 401 and not challenged:
                    challenged = True
                    self._tokens[repository] = await self._token(response, repository)
                    request = self._request(url, repository, headers)
                else:
                    with self._errors():
                        await response.aread()
                    raise self._refusal(response, repository)
            finally:
                with trio.move_on_after(1, shield=True):
                    await response.aclose()
        raise Unavailable(f"{self._host} redirects in circles")

    def _request(self, url: str, repository: str, headers: dict[str, str]) -> httpx2.Request:
        token = self._tokens.get(repository)
        if token:
            headers = {**headers, "Authorization": f"Bearer {token}"}
        return self._open.build_request("GET", url, headers=headers)

    async def _token(self, response: httpx2.Response, repository: str) -> str:
        """Fetch the token that this registry gives to anybody."""
        challenge = response.headers.get("WWW-Authenticate", "")
        kind, _, rest = challenge.partition(" ")
        parameters = {name.lower(): value for name, value in _PARAMETER.findall(rest)}
        realm = parameters.get("realm", "")
        if kind.lower() != "bearer" or not realm:
            raise self._denied(repository)
        if not realm.startswith("https://") and self._base.startswith("https://"):
            raise self._denied(repository)
        query = {"scope": parameters.get("scope") or f"repository:{repository}:pull"}
        if "service" in parameters:
            query["service"] = parameters["service"]
        with self._errors():
            answer = await self._open.get(realm, params=query)
        if answer.status_code in (401, 403):
            raise self._denied(repository)
        if answer.status_code != 200:
            raise self._unexpected(answer)
        try:
            token = msgspec.json.decode(answer.content, type=_Token)
        except msgspec.MsgspecError as error:
            raise Malformed(f"the token of {self._host} can't be read: {error}") from error
        found = token.token or token.access_token
        if not found:
            raise self._denied(repository)
        return found

    # Errors.

    def _refusal(self, response: httpx2.Response, repository: str) -> Exception:
        if response.status_code in (401, 403):
            return self._denied(repository)
        if response.status_code == 404:
            return NotFound(f'{self._host} has no such image "{repository}"')
        return self._unexpected(response)

    def _denied(self, repository: str) -> PermissionDenied:
        return PermissionDenied(
            f'{self._host} wants credentials for "{repository}"',
            hint="it is private, or does not exist; this version pulls without credentials only",
        )

    def _unexpected(self, response: httpx2.Response) -> Unavailable:
        if response.status_code == 429:
            after = response.headers.get("Retry-After", "")
            return Unavailable(
                f"{self._host} has had too many requests from here",
                hint=f"try again in {after} s" if after.isdigit() else "try again later",
            )
        return Unavailable(
            f"{self._host} answers with status {response.status_code}", hint="try again later"
        )

    @contextmanager
    def _errors(self) -> Generator[None]:
        """Turn what goes wrong on the way into an error that names the registry."""
        try:
            yield
        except httpx2.TimeoutException as error:
            raise Unavailable(
                f"the registry {self._host} does not answer in time",
                hint="check the name and the network, or try again later",
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            cause = _tls_error(error)
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise Unavailable(
                    f"the certificate of the registry {self._host} is not trusted: "
                    f"{cause.verify_message}",
                    hint="set SSL_CERT_FILE to the certificate of its authority",
                ) from error
            if cause is not None and cause.reason in _NOT_TLS:
                raise Unavailable(
                    f"the registry {self._host} does not speak TLS",
                    hint="if that is meant to be so, choose the scheme http",
                    details={"no_tls": True},
                ) from error
            raise Unavailable(
                f"the registry {self._host} can't be reached: {_reason(error)}",
                hint="check the name and the network, or try again later",
            ) from error

    @property
    def _open(self) -> httpx2.AsyncClient:
        if self._client is None:
            raise RuntimeError("Registry is not open: use `async with`")
        return self._client

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with trio.move_on_after(1, shield=True):
                await client.aclose()


@asynccontextmanager
async def _body(response: httpx2.Response) -> AsyncGenerator[AsyncIterator[bytes]]:
    """Read an answer's body; leaving early ends it at its source.

    The client stacks async generators and does not close the inner ones with the outer: one that is
    left half read is found by the garbage collector, later. Reading on from a closed connection
    fails at once, and unwinds them all.
    """
    pieces = response.aiter_raw()
    try:
        yield pieces
    finally:
        with trio.move_on_after(1, shield=True), suppress(httpx2.HTTPError, httpx2.StreamError):
            await response.aclose()
            async for _ in pieces:
                pass


def is_loopback(authority: str) -> bool:
    """Say whether a `host[:port]` is this machine itself."""
    host = authority
    if authority.startswith("["):
        host = authority[1:].partition("]")[0]
    elif authority.count(":") == 1:
        host = authority.partition(":")[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(algorithm: str, raw: bytes) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    step: BaseException | None = error
    while step is not None and not isinstance(step, ssl.SSLError):
        step = step.__cause__ or step.__context__
    return step


def _reason(error: BaseException) -> str:
    """Return the kernel's words if there are any: they say more than the client's."""
    step: BaseException | None = error
    while step is not None:
        if isinstance(step, BaseExceptionGroup):
            step = cast("BaseExceptionGroup[BaseException]", step).exceptions[0]
        elif isinstance(step, OSError) and step.strerror:
            return step.strerror
        else:
            step = step.__cause__ or step.__context__
    return str(error) or type(error).__name__
