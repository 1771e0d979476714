"""Take away one line that gives a guarantee at a time; say which loss no test notices."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutations.guarantees import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]
BOUND = 180.0
"""Seconds for one run of tests; one that hangs has noticed."""


def noticed(mutation: Mutation | None, test: str) -> bool:
    """Run a test on a copy of the package with a mutation, or without any."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("container", "tests", "docs", "examples"):
            shutil.copytree(
                ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "corpus")
            )
        shutil.copy(ROOT / "pyproject.toml", copy)
        if mutation is not None:
            path = copy / "container" / "ipc" / mutation.file
            text = path.read_text()
            assert text.count(mutation.old) == 1, f"not there once: {mutation.old!r}"
            path.write_text(text.replace(mutation.old, mutation.new))
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        loaded = "import container; print(container.__file__)"
        where = subprocess.check_output(
            [sys.executable, "-c", loaded], cwd=folder, env=environment, text=True
        )
        assert where.startswith(folder), f"{where} is not the copy"
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        command += ["-o", "timeout=30", f"tests/ipc/{test}"]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                capture_output=True,
                timeout=BOUND,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return True
    if done.returncode > 1:
        raise SystemExit(f"{test}: pytest could not run it:\n{done.stdout.decode()[-2000:]}")
    return done.returncode == 1


def main() -> int:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser("scripts/mutations", description=__doc__)
    parser.add_argument("guarantee", nargs="?", help="G1 to G8: those of it alone")
    asked = parser.parse_args().guarantee
    chosen = [mutation for mutation in MUTATIONS if asked in (None, mutation.guarantee)]
    for test in sorted({mutation.test for mutation in chosen}):
        if noticed(None, test):
            print(f"{test} fails without any mutation: it can prove nothing")
            return 2
    survived = 0
    for mutation in chosen:
        well = noticed(mutation, mutation.test)
        survived += not well
        line = mutation.old.strip().splitlines()[0].strip()
        verdict = "noticed " if well else "SURVIVED"
        print(
            f"{verdict} {mutation.guarantee} {mutation.file}: {line}  [{mutation.test}]", flush=True
        )
    print(f"{len(chosen) - survived} of {len(chosen)} mutations were noticed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
