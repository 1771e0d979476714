"""Networks as a user has them: real containers, packets and names, in a network namespace of the
test's own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from container.testing.network import can_make_namespaces

pytestmark = pytest.mark.skipif(
    not can_make_namespaces() or not Path("/usr/sbin/nft").exists(),
    reason="needs network namespaces and nft (nftables)",
)

SERVE = "mkdir /w; hostname > /w/index.html; exec httpd -f -p 80 -h /w"
"""A web server that tells its container's host name."""


@pytest.fixture
def net(machine_with_networks: Any) -> Any:
    """A system whose containers are in the default network, with none of an earlier test's."""
    machine_with_networks.run("rm", "-f", "-a")
    machine_with_networks.run("network", "prune")
    return machine_with_networks


def fetch(url: str) -> str:
    """Fetch from a web server that may be about to listen."""
    end = time.monotonic() + 10
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read().decode().strip()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)  # nobody tells us when it listens


def wget(net: Any, container: str, url: str) -> str:
    """Fetch from inside a container, as often as `fetch`."""
    command = f"for i in $(seq 100); do timeout 3 wget -qO- {url} && exit; sleep 0.05; done; exit 1"
    return net.text("exec", container, "sh", "-c", command).strip()


def test_the_default_network_leads_out_and_published_ports_lead_in(net: Any) -> None:
    net.run("run", "-d", "--name", "web", "--hostname", "w", "-p", "8080:80", "-p", "127.0.0.1::80",
            "demo", "sh", "-c", SERVE)  # fmt: skip
    everywhere, local = net.text("port", "web", "80").split()
    assert everywhere == "0.0.0.0:8080"
    assert "0.0.0.0:8080->80/tcp" in net.text("ls")
    for url in ("http://127.0.0.1:8080/", "http://[::1]:8080/", f"http://{local}/"):
        assert fetch(url) == "w", url
    said = net.refused("run", "--rm", "-p", "8080:80", "demo", "true", status=125)
    assert "8080" in said
    assert "web" in said
    with socket.create_server(("127.0.0.1", 8081)):
        said = net.refused("run", "--rm", "-p", "8081:80", "demo", "true", status=125)
    assert f"(process {os.getpid()})" in said
    # From inside to a server of this machine, by its name.
    with socket.create_server(("0.0.0.0", 8082)) as server:
        answered: list[str] = []

        def answer() -> None:
            line, (peer, _) = server.accept()
            with line:
                answered.append(peer)
                line.sendall(b"hello from outside\n")

        thread = threading.Thread(target=answer)
        thread.start()
        name = "host.container.internal"
        assert net.text("run", "--rm", "demo", "nc", name, "8082") == "hello from outside\n"
        thread.join()
    assert answered[0].startswith("10.89.0.")
    assert net.text("run", "--rm", "--network", "none", "demo", "ls", "/sys/class/net") == "lo\n"


def test_containers_know_each_other_by_name_in_their_networks_alone(net: Any) -> None:
    net.run("network", "create", "--subnet", "10.9.0.0/24", "--ipv6", "app")
    net.run("run", "-d", "--name", "web", "--hostname", "w", "--network",
            "app,ip=10.9.0.77,alias=www", "demo", "sh", "-c", SERVE)  # fmt: skip
    net.run("run", "-d", "--name", "client", "--network", "app", "demo", "sleep", "1000")
    for name in ("web", "www", "WEB", "10.9.0.77"):
        assert wget(net, "client", f"http://{name}/") == "w"
    net.run("run", "-d", "--name", "stranger", "demo", "sleep", "1000")
    for name in ("web", "10.9.0.77"):
        refused = net.run("exec", "stranger", "timeout", "1", "wget", "-qO-", f"http://{name}/",
                          status=None)  # fmt: skip
        assert (refused.returncode != 0, refused.stdout) == (True, b"")
    # Until it is in that network, too.
    assert net.text("network", "connect", "app", "stranger").startswith("10.9.0.")
    assert wget(net, "stranger", "http://web/") == "w"
    net.run("network", "disconnect", "app", "stranger")
    gone = net.run("exec", "stranger", "timeout", "1", "wget", "-qO-", "http://web/", status=None)
    assert gone.returncode != 0
    assert [each["network_name"] for each in json.loads(net.text("inspect", "stranger"))[0][
        "attachments"]] == ["default"]  # fmt: skip
    # Another's network is its own.
    assert "10.9.0.77" in net.text(
        "run", "--rm", "--network", "container:web", "demo", "ip", "addr"
    )
    assert net.text("run", "--rm", "--network", "container:web", "demo", "wget", "-qO-",
                    "http://127.0.0.1/") == "w\n"  # fmt: skip
    said = net.refused("network", "rm", "app", status=1)
    assert "the network app is used by containers" in said
    assert "web" in said
    net.run("network", "rm", "-f", "app")
    assert json.loads(net.text("inspect", "web"))[0]["network"] == "none"


def test_a_socket_is_published_and_a_port_dialled(net: Any, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        net.run("run", "-d", "--name", "web", "--hostname", "w", "--network", "none",
                "--publish-socket", f"{tmp_path}/s:/run/s",
                "demo", "sh", "-c", f"test -S /run/s || exit 7; {SERVE}")  # fmt: skip
    request = b"GET / HTTP/1.0\r\n\r\n"
    for _ in range(100):
        done = net.run("dial", "web", "80", stdin=request, status=None)
        if done.returncode == 0:
            break
        time.sleep(0.05)  # it is about to listen
    assert done.stdout.endswith(b"w\n")
    said = net.refused("dial", "web", "81", status=1)
    assert "81" in said


def pid_of(net: Any, service: str) -> int:
    """Return the process of a service."""
    status = json.loads(net.text("system", "status", "--format", "json"))
    found = next(
        each for each in status["services"] if each["name"].startswith(service) and each["pid"]
    )
    pid = found["pid"]
    assert isinstance(pid, int)
    return pid


def test_packets_flow_on_whatever_process_is_killed_and_nothing_is_left_at_the_end(
    net: Any,
) -> None:
    net.run("run", "-d", "--name", "web", "--hostname", "w", "-p", "8080:80", "demo", "sh", "-c",
            SERVE)  # fmt: skip
    net.run("network", "create", "app")
    assert fetch("http://127.0.0.1:8080/") == "w"
    for service in ("apiserver", "network.", "runtime."):
        os.kill(pid_of(net, service), signal.SIGKILL)
        assert fetch("http://127.0.0.1:8080/") == "w"
        assert net.text("network", "connect", "app", "web").startswith("10.89.1.")
        net.run("network", "disconnect", "app", "web")
    assert json.loads(net.text("network", "inspect", "default"))[0]["status"]["problems"] == []
    net.run("rm", "-f", "web")
    net.run("network", "prune")
    assert [each["configuration"]["name"] for each in json.loads(
        net.text("network", "ls", "--format", "json"))] == ["default"]  # fmt: skip
    net.run("system", "stop", "--containers")
    links = subprocess.run(["ip", "-j", "link"], check=True, capture_output=True).stdout
    assert [each["ifname"] for each in json.loads(links)] == ["lo"]
    tables = subprocess.run(["nft", "list", "tables"], check=True, capture_output=True).stdout
    assert tables == b""


@pytest.mark.usefixtures("machine_with_networks")
def test_a_system_of_a_program_has_networks_too(layout: Path) -> None:
    program = f"""
import json, os, trio, container
from container.contracts.network import PublishedPort

async def main():
    async with container.open_system() as system:
        await system.load({str(layout)!r})
        async with system.run("demo", ["sh", "-c", {SERVE!r}], hostname="w",
                              ports=[PublishedPort(80, 8080)]) as c:
            print((await system.containers.get(c.id)).attachments[0].network_name, flush=True)
            await trio.to_thread.run_sync(input)

trio.run(main)
"""
    environment = {name: value for name, value in os.environ.items() if name != "CONTAINER_NETWORK"}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline() == "default\n"
        assert fetch("http://127.0.0.1:8080/") == "w"
        running.communicate("\n", timeout=60)
    assert running.returncode == 0
