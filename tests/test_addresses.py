"""Addresses of other machines are refused in one line where a local folder is meant, and nothing is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness_train import command

from softcache.errors import UsageError
from softcache.localfiles import local_path
from softcache.stages.dump import dump


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "hf", "http", "https", "file", "my-store+v2"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["dump", "--out"],
        ["teach", "--out"],
        ["train", "--alpha", "0", "--out"],
        ["train", "--cache"],
        ["train", "--alpha", "0", "--hint", "fitnet:teacher=a,student=b", "--hint-cache"],
        ["train", "--resume"],
        ["verify"],
        ["info"],
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
    assert f"{address} is an address, and softcache reads and writes local folders only" in line
    assert not list(here.iterdir())


def test_a_path_of_python_is_refused_too(here: Path) -> None:
    """pathlib has made one slash of two by then."""
    with pytest.raises(UsageError, match="--out s3:/bucket/folder is an address"):
        dump("cifar:resnet8", out=Path("s3://bucket/folder"))
    assert not list(here.iterdir())


@pytest.mark.parametrize("path", ["a", "/a/b", "a:b/c", "C:/a", "./s3:/a", "../x//y", "a/s3://b"])
def test_a_path_is_a_path(path: str) -> None:
    assert local_path(path, "--out") == Path(path)
