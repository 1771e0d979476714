"""Help, version and completion: at once, without a system, without the framework."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from container.cli.main import ENTRIES

HEAVY = {"trio", "cattrs", "attr", "container.ipc", "container.contracts", "rich", "httpx"}


def fresh(*arguments: str, environment: dict[str, str] | None = None) -> tuple[str, set[str]]:
    """Return what a fresh process prints, and which heavy modules it has loaded."""
    program = (
        "import json, sys\nfrom container.cli.main import main\n"
        "status = main(sys.argv[1:])\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\nsys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/nowhere", "CONTAINER_RUN": "/no/such", **(environment or {})},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, set(json.loads(done.stderr.splitlines()[-1])) & HEAVY


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("--help",), ("help",), ("--version",), ("help", "run"), ("run", "--help"),
        ("help", "image", "load"), ("image",), ("image", "--help"), ("exec", "--help"),
        ("system", "--help"), ("ipc",), ("ipc", "call", "--help"), ("ipc", "monitor", "--help"),
        ("completion", "zsh"), ("completion", "fish"),
    ],
)  # fmt: skip
def test_help_loads_no_framework(arguments: tuple[str, ...]) -> None:
    out, heavy = fresh(*arguments)
    assert out
    assert not heavy


@pytest.mark.parametrize(
    ("words", "expected"),
    [("container im", "image"), ("container run --pids", "--pids-limit"),
     ("container image ", "load"), ("container help", "help")],
)  # fmt: skip
def test_completion_loads_no_framework(words: str, expected: str) -> None:
    environment = {
        "_CONTAINER_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    out, heavy = fresh(environment=environment)
    assert expected in [line.partition(",")[2] for line in out.splitlines()]
    assert not heavy


def test_every_verb_has_help_that_begins_with_a_sentence(run: Any) -> None:
    for entry in ENTRIES:
        for name in (entry.name, *entry.aliases):
            said = run(name, "--help")
            assert said.status == 0, name
            assert said.out.startswith("Usage: container "), name
            assert said.err == ""


def test_help_says_which_network_is_the_default_and_how_to_have_none(run: Any) -> None:
    for words in (("help",), ("help", "run"), ("create", "--help")):
        text = " ".join(run(*words).out.split())
        assert "in the network named" in text, words
        assert "--network none" in text, words


def test_an_unknown_command_gets_a_suggestion(run: Any) -> None:
    assert run("lisst") == (2, "", 'container: no command "lisst"\nhint: did you mean "list"?\n')
    assert run("image", "pul").err.endswith('hint: did you mean "pull"?\n')
    assert run("help", "nothing-like-it").status == 2
    assert run("help", "run", "x").status == 2


def test_bad_usage_of_other_verbs_is_2(run: Any) -> None:
    for words in (("--bogus",), ("list", "--bogus"), ("image", "pull"), ("stop",), ("wait",)):
        said = run(*words)
        assert said.status == 2, words
        assert said.err.startswith("container: "), words
        assert "\nhint: " in said.err, words


def test_an_alias_does_what_its_command_does(run: Any) -> None:
    assert run("ps", "--help").out.split()[3:] == run("list", "--help").out.split()[3:]
