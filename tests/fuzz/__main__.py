"""Coverage-guided fuzzing of what reads a peer's bytes: `scripts/fuzz --help`."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = ("machine", "codec", "message", "dns_query", "dns_answer")
INSTRUMENTED = ["container.ipc.wire", "container.ipc.codec", "container.ipc.message"]
INSTRUMENTED += ["container.ipc.wirevalues", "container.ipc.strict", "tests.fuzz"]
INSTRUMENTED += ["container.resolver", "dns.message", "dns.name", "dns.wire", "dns.edns"]


def drive(target: str, arguments: list[str]) -> None:
    """Fuzz one target in this process; libFuzzer ends it."""
    import atheris  # pyright: ignore[reportMissingImports]

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz import targets
    take = targets.planted if target == "planted" else targets.TARGETS[target]
    atheris.Setup([sys.argv[0], *arguments], take)
    atheris.Fuzz()


def fuzz(target: str, seconds: int, seed: int, planted: bool, found: Path) -> bool:
    """Fuzz one target in a process of its own; what breaks it is kept in `found`."""
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as new:
        command = [sys.executable, "-m", "tests.fuzz", "--drive"]
        command += ["planted" if planted else target, f"-max_total_time={seconds}"]
        command += [f"-artifact_prefix={found}/{target}-", "-max_len=4096", "-timeout=10"]
        command += ["-rss_limit_mb=1024", "-print_final_stats=1", f"-seed={seed}"]
        command += [new, str(Path(__file__).parent / "corpus" / target)]
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    text = done.stdout.decode(errors="replace")
    shown = [
        line
        for line in text.splitlines()
        if line.startswith(("stat::number_of_executed", "stat::average", "Done"))
    ]
    print(f"{target}: {'FOUND' if done.returncode else 'well'}: {'; '.join(shown)}", flush=True)
    if done.returncode:
        print(text[-6000:])
    return done.returncode == 0


def main() -> int:
    """Read the command line and do it."""
    if sys.argv[1:2] == ["--drive"]:
        drive(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser("scripts/fuzz", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=int, default=60, help="of all targets together")
    parser.add_argument("target", nargs="?", choices=NAMES, help="one alone")
    parser.add_argument("--seed", type=int, default=1, help="of libFuzzer's choices")
    parser.add_argument("--plant", action="store_true", help="fuzz a machine with a known fault")
    parser.add_argument("--seeds", action="store_true", help="write the corpus's golden inputs")
    parser.add_argument("--found", type=Path, default=ROOT / "build" / "fuzz", help="a folder")
    asked = parser.parse_args()
    if asked.seeds:
        from tests.fuzz.targets import write_seeds

        write_seeds()
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("scripts/fuzz: atheris is not there; it has no wheel for every Python")
        return 2
    targets = ["machine"] if asked.plant else [asked.target] if asked.target else list(NAMES)
    each = max(1, asked.seconds // len(targets))
    well = [fuzz(target, each, asked.seed, asked.plant, asked.found) for target in targets]
    if all(well):
        shutil.rmtree(asked.found, ignore_errors=True)
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
