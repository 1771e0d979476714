"""One `run` crosses every process: the trace names each with its pid."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import private_machine


def test_one_trace_of_a_run_names_every_process(layout: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    with private_machine() as machine:
        machine.environment["CONTAINER_TRACE"] = str(trace)
        machine.run("image", "load", "-i", str(layout))
        trace.write_text("")
        machine.run("run", "--rm", "demo", "true")
    spans = [json.loads(line) for line in trace.read_text().splitlines()]
    [run] = {span["trace"] for span in spans if span["route"] == "containers/create"}
    ours = [span for span in spans if span["trace"] == run]
    pids = {(span["process"].split(".")[0], span["pid"]) for span in ours}
    names = {name for name, _ in pids}
    assert names >= {
        "container",
        "container-launcher",
        "container-apiserver",
        "container-images",
        "container-runtime",
    }
    assert len({pid for _, pid in pids}) == len(pids) >= 5
    served = {span["route"] for span in ours if span["side"] == "server"}
    assert {"containers/create", "images/prepare", "launcher/register", "sandbox/start"} <= served
    # Every span but the first hangs below another one of the same trace.
    known = {span["span"] for span in ours}
    assert all(span["parent"] in known for span in ours if span["side"] == "server")
