"""Addresses are refused in one line where a local folder is meant or no store is there, and nothing is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness_train import command

from softcache.errors import UsageError
from softcache.localfiles import local_path
from softcache.stages.train import train


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "hf", "http", "https", "file", "my-store+v2"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["teach", "--out"],
        ["train", "--alpha", "0", "--out"],
        ["train", "--resume"],
        ["trim", "--views", "1"],
        ["eval"],
        ["dump", "--teacher"],
        ["dump", "--dataset", "cifar10", "--download", "--data-dir"],
    ],
    ids=" ".join,
)
def test_an_address_is_refused(
    here: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], scheme: str
) -> None:
    address = f"{scheme}://bucket/folder"
    capfd.readouterr()
    assert command(*arguments, address) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert f"{address} is an address, and has to be a folder of this machine" in line
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["dump", "--out"],
        ["train", "--cache"],
        ["train", "--alpha", "0", "--hint", "fitnet:teacher=a,student=b", "--hint-cache"],
        ["verify"],
        ["info"],
        ["copy", "cache"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("http://host/cache", "use https://"),
        ("file://bucket/folder", "softcache knows no file://"),
        ("my-store+v2://bucket/folder", "softcache knows no my-store+v2://"),
        ("s3://", "names no folder"),
    ],
)
def test_an_address_of_no_store_is_refused(
    here: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], address: str, what: str
) -> None:
    (here / "cache").mkdir()
    capfd.readouterr()
    if address.startswith("http:") and arguments[0] in ("dump", "copy"):
        what = "writes nothing to http:// addresses"  # nor to https://, which isn't advised therefore
    assert command(*arguments, address) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert what in line
    assert [path.name for path in here.iterdir()] == ["cache"]


def test_a_path_of_python_is_refused_too(here: Path) -> None:
    """pathlib has made one slash of two by then."""
    with pytest.raises(UsageError, match="--resume s3:/bucket/folder is an address"):
        train(resume=Path("s3://bucket/folder"))
    assert not list(here.iterdir())


@pytest.mark.parametrize("path", ["a", "/a/b", "a:b/c", "C:/a", "./s3:/a", "../x//y", "a/s3://b"])
def test_a_path_is_a_path(path: str) -> None:
    assert local_path(path, "--out") == Path(path)
