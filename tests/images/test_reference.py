"""References: what people write, and what it means."""

from __future__ import annotations

import pytest

from container.images.reference import candidates, digest_prefix, parse
from container.ipc import InvalidArgument

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
        ("user/tool", "docker.io/user/tool:latest"),
        ("quay.io/a/b/c:v1", "quay.io/a/b/c:v1"),
        ("localhost/demo", "localhost/demo:latest"),
        ("localhost:5000/demo", "localhost:5000/demo:latest"),
        ("127.0.0.1:5000/demo:x", "127.0.0.1:5000/demo:x"),
        ("[::1]:5000/demo", "[::1]:5000/demo:latest"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        (f"alpine:3@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        ("a__b.c--d", "docker.io/library/a__b.c--d:latest"),
    ],
)
def test_a_reference_is_normalised(text: str, full: str) -> None:
    assert str(parse(text, "docker.io")) == full
    assert str(parse(full, "docker.io")) == full


def test_a_bare_name_belongs_to_the_default_registry() -> None:
    assert str(parse("demo", "reg.example:5000")) == "reg.example:5000/demo:latest"


def test_a_bare_name_finds_a_loaded_image_first_and_a_full_one_only_itself() -> None:
    assert list(map(str, candidates("demo", "docker.io"))) == [
        "localhost/demo:latest",
        "docker.io/library/demo:latest",
    ]
    assert list(map(str, candidates("quay.io/demo", "docker.io"))) == ["quay.io/demo:latest"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "lower-case letters"),
        ("Alpine", "are lower-case"),
        ("a//b", "lower-case letters"),
        ("../../etc", "no host"),
        ("alpine:", "tag"),
        ("alpine:.x", "tag"),
        ("alpine:" + "x" * 129, "tag"),
        ("a" * 256, "at most"),
        ("quay.io/", "lower-case letters"),
        ("-alpine", "lower-case letters"),
        ("al pine", "lower-case letters"),
        ("alpine\n", "lower-case letters"),
        ("https://docker.io/alpine", "no host"),
    ],
)
def test_what_is_no_reference_is_refused_with_the_rule(text: str, rule: str) -> None:
    with pytest.raises(InvalidArgument, match="is no image name") as caught:
        parse(text, "docker.io")
    assert rule in (caught.value.hint or "")


def test_a_bad_digest_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="is no digest"):
        parse("alpine@sha256:abc", "docker.io")


def test_seven_hex_digits_may_be_a_digest_and_six_may_not() -> None:
    assert digest_prefix("abcdef0") == "abcdef0"
    assert digest_prefix("sha256:abcdef0") == "abcdef0"
    assert digest_prefix("abcdef") is None
    assert digest_prefix("alpine0") is None
