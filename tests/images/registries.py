"""Registries for tests, on the loopback address: a real one, and one that misbehaves as told."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from attrs import define, field

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def docker_registry(
    folder: Path, *, certificate: Path | None = None, key: Path | None = None,
    htpasswd: Path | None = None,
) -> Iterator[str]:  # fmt: skip
    """Run a real registry; the block gets its `host:port`."""
    port = free_port()
    http: dict[str, object] = {"addr": f"127.0.0.1:{port}"}
    if certificate:
        http["tls"] = {"certificate": str(certificate), "key": str(key)}
    configuration: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": http,
    }
    if htpasswd:
        configuration["auth"] = {"htpasswd": {"realm": "test", "path": str(htpasswd)}}
    folder.mkdir(parents=True, exist_ok=True)
    # JSON is YAML.
    (folder / "config.yml").write_text(json.dumps(configuration))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", folder / "config.yml"], stdout=log, stderr=log
        )
    try:
        _wait_for(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    # A foreign program: nothing says when it listens, so it is tried.
    end = time.monotonic() + 20
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError("the registry did not start")


@define
class FakeRegistry:
    """Serve one OCI layout, for any repository; spoil what is asked for."""

    layout: Path
    blobs: dict[str, bytes] = field(factory=dict[str, bytes])
    """Served instead of the layout's."""
    token: str | None = None
    """If set it is asked for, and given to anybody at `/token`."""
    basic: bool = False
    """Ask for a password, whatever comes."""
    status: int | None = None
    """Answer everything but `/v2/` with this."""
    elsewhere: str | None = None
    """Redirect blobs to this base address."""
    stall: threading.Event | None = None
    """Send half of each blob, then wait for this."""
    stalled: threading.Event = field(factory=threading.Event)
    """Set when half a blob was sent."""
    requests: list[tuple[str, str | None]] = field(factory=list[tuple[str, str | None]])
    """Paths and Authorization headers, in order."""
    host: str = ""

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Serve in a thread; the block gets the `host:port`."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.close_connection = True
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    fake.answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.host = f"127.0.0.1:{server.server_address[1]}"
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            try:
                yield self.host
            finally:
                if self.stall is not None:
                    self.stall.set()
                server.shutdown()
                thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        path = request.path
        authorization = request.headers.get("Authorization")
        self.requests.append((path, authorization))
        if path.startswith("/token"):
            return _send(request, 200, json.dumps({"token": self.token}).encode())
        if self.basic:
            return _send(request, 401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
        if self.token is not None and authorization != f"Bearer {self.token}":
            challenge = (
                f'Bearer realm="http://{self.host}/token",service="s",scope="repository:x:pull"'
            )
            return _send(request, 401, b"", {"WWW-Authenticate": challenge})
        if path == "/v2/":
            return _send(request, 200, b"{}")
        if self.status is not None:
            return _send(request, self.status, b"", {"Retry-After": "7"})
        kind, name = path.rsplit("/", 2)[1:]
        if kind == "manifests":
            index = json.loads((self.layout / "index.json").read_text())
            digest = name if ":" in name else index["manifests"][0]["digest"]
            return self._blob(request, digest, {"Content-Type": MANIFEST}, whole=True)
        if self.elsewhere is not None:
            return _send(request, 307, b"", {"Location": f"{self.elsewhere}{path}"})
        return self._blob(request, name, {}, whole=False)

    def _blob(
        self, request: BaseHTTPRequestHandler, digest: str, headers: dict[str, str], *, whole: bool
    ) -> None:
        path = self.layout / "blobs/sha256" / digest.removeprefix("sha256:")
        data = self.blobs.get(digest) or (path.read_bytes() if path.exists() else None)
        if data is None:
            return _send(request, 404, b"{}")
        if self.stall is None or whole or len(data) < 10_000:
            return _send(request, 200, data, headers)
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data[: len(data) // 2])
        request.wfile.flush()
        self.stalled.set()
        self.stall.wait(60)
        return None


def _send(
    request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str] | None = None
) -> None:
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(data)))
    request.send_header("Connection", "close")
    request.end_headers()
    request.wfile.write(data)
