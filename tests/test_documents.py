"""The programs in README and the how-tos do what is written beside them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from container.testing.busybox import find_busybox, write_layout

ROOT = Path(__file__).parent.parent


def program(document: str, containing: str) -> str:
    """Return the one Python program of a document that contains some text."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    (found,) = (block for block in blocks if containing in block)
    return str(found)


MAIN = """
async def main() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, "s")
        await trio.testing.wait_all_tasks_blocked(0.05)
        await visit("s")
        await have_it_served()
        nursery.cancel_scope.cancel()

if __name__ == "__main__":
    import trio.testing
    trio.run(main)
"""


def test_the_framework_program_of_readme_does_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "readme.py").write_text(program("README.md", "class Greeter") + MAIN)
    done = subprocess.run(
        [sys.executable, "readme.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.stderr, done.stdout) == ("", "hello ada\n1\n0\n1\n2\nhello bob\n")


@pytest.mark.parametrize("document", ["README.md", "docs/how-to/embedding.md"])
def test_the_test_of_the_documents_passes(document: str, tmp_path: Path) -> None:
    (tmp_path / "test_job.py").write_text(program(document, "container_system"))
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.system
@pytest.mark.parametrize(
    ("document", "output"),
    [
        ("README.md", "b'hello\\n' 3\n"),
        ("docs/how-to/embedding.md", "b'hello\\n'\nb'Linux\\n'\n"),
    ],
)
def test_the_embedding_programs_of_the_documents_print_what_they_say(
    document: str, output: str, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("real containers need root")
    if not (shutil.which("runc") or shutil.which("crun")):
        pytest.skip("no OCI runtime is installed")
    try:
        write_layout(tmp_path / "layout", busybox=find_busybox())
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with tarfile.open(tmp_path / "demo.tar", "w") as tar:
        for path in sorted((tmp_path / "layout").iterdir()):
            tar.add(path, path.name)
    done = subprocess.run(
        [sys.executable, "-c", program(document, "open_system")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.stdout, done.returncode) == (output, 0), done.stderr


def test_each_guarantee_names_tests_and_each_of_them_exists() -> None:
    page = (ROOT / "docs/reference/guarantees.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith("| ") and "proof |" not in row]
    assert len(rows) > 80
    for row in rows:
        named = re.findall(r"`((?:tests|container/ipc/testing)/[\w/]+\.py)::(\w+)`", row)
        assert named, f"nothing proves {row}"
        for file, name in named:
            found = re.search(
                rf"(def {name}\(|^{name} = )", (ROOT / file).read_text(), re.MULTILINE
            )
            assert found, f"{file} has no {name}"


TUTORIAL = ("docs/tutorial/index.md", "docs/tutorial/testing.md")


def test_the_tutorial_does_what_it_says_typed_in_by_a_newcomer(tmp_path: Path) -> None:
    """Every block of the tutorial is saved or typed in, in order, in an empty folder."""
    block = re.compile(r"(?:this as `(\w+\.py)`:\n\n)?```(\w+)\n(.*?)```", re.DOTALL)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    terminals: list[tuple[subprocess.Popen[str], str]] = []
    seen = ""
    try:
        for document in TUTORIAL:
            for name, language, text in block.findall((ROOT / document).read_text()):
                if language == "python":
                    (tmp_path / name).write_text(text)
                elif language == "console":
                    command, expected = text.removeprefix("$ ").split("\n", 1)
                    terminal = subprocess.Popen(
                        ["bash", "-c", command],
                        cwd=tmp_path,
                        env={**os.environ, "PATH": path},
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        text=True,
                        start_new_session=True,
                    )
                    terminals.append((terminal, command))
                    assert terminal.stdout is not None
                    printed = [terminal.stdout.readline() for _ in expected.splitlines()]
                    assert "".join(printed) == expected, terminal.stdout.read()
                else:
                    seen = text
        (telescope,) = (t for t, command in terminals if command == "python telescope.py")
        assert telescope.stdout is not None
        os.killpg(telescope.pid, signal.SIGINT)
        assert telescope.stdout.read().startswith(seen)
    finally:
        for terminal, _ in terminals:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(terminal.pid, signal.SIGKILL)
            terminal.communicate()
