"""Settings: which file is over which, and mistakes that are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from container.ipc import InvalidArgument
from container.storage.settings import Settings


def read(tmp_path: Path, **variables: str) -> Settings:
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "user"), **variables}
    return Settings.read(environment=environment, system_folder=tmp_path / "etc")


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.toml"
    path.write_text(text)
    return path


def test_without_files_the_default_registry_is_docker_io(tmp_path: Path) -> None:
    assert read(tmp_path).default_registry == "docker.io"


def test_the_users_file_is_over_the_systems_and_the_environment_over_both(tmp_path: Path) -> None:
    write(tmp_path / "etc", '[registry]\ndefault = "one.example"\n')
    assert read(tmp_path).default_registry == "one.example"
    write(tmp_path / "user" / "container", '[registry]\ndefault = "two.example:5000"\n')
    assert read(tmp_path).default_registry == "two.example:5000"
    found = read(tmp_path, CONTAINER_DEFAULT_REGISTRY="three.example")
    assert found.default_registry == "three.example"


def test_without_the_xdg_variable_the_users_file_is_below_the_home(tmp_path: Path) -> None:
    write(tmp_path / ".config" / "container", '[registry]\ndefault = "home.example"\n')
    found = Settings.read(environment={"HOME": str(tmp_path)}, system_folder=tmp_path / "etc")
    assert found.default_registry == "home.example"


@pytest.mark.parametrize(
    "text",
    ["[registry\n", '[registri]\ndefault = "x"\n', '[registry]\ndefalt = "x"\n',
     "[registry]\ndefault = 3\n", 'registry = "x"\n'],
)  # fmt: skip
def test_what_a_file_says_wrongly_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "etc", text)
    with pytest.raises(InvalidArgument, match=str(path)) as caught:
        read(tmp_path)
    assert caught.value.hint


def test_a_default_registry_that_is_no_host_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="is no registry"):
        read(tmp_path, CONTAINER_DEFAULT_REGISTRY="https://docker.io/x")
