"""What is put onto a package index: a source archive and a wheel that hold all of softcache, and versions that agree.

`make dist` also installs the wheel and runs its commands (.ci/try_wheel.py).
"""

from __future__ import annotations

import configparser
import email.parser
import importlib.util
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from harness_train import command

import softcache

ROOT = Path(__file__).parents[1]
DATA = ("presets/*.json", "reporting/assets/*")  # files of the package that are no code
# Of a checkout, what is made in it.
MADE = ("__pycache__", ".git", ".venv", "build", "dist", "*.egg-info", ".*_cache", ".hypothesis", "runs", "caches")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both archives, made from a copy of the checkout with the setuptools that is installed."""
    for package in ("build", "setuptools"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(*MADE))
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), "."]
    done = subprocess.run(build, cwd=folder / "checkout", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


def test_the_wheel_holds_the_whole_package_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    assert wheel.name == f"softcache-{softcache.__version__}-py3-none-any.whl"
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = Path(softcache.__file__).parent
    code = {path.relative_to(package.parent) for path in package.rglob("*.py")}
    data = {path.relative_to(package.parent) for kind in DATA for path in package.glob(kind)}
    digits = {
        f"softcache/_data/{path.name}" for path in (ROOT / "data").iterdir() if path.suffix in (".npz", ".md", ".py")
    }
    expected = {str(path) for path in code | data} | {"softcache/py.typed"} | digits
    assert found == expected


def test_the_source_archive_builds_the_wheel_and_has_tests_and_docs(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        found = {name.partition("/")[2] for name in opened.getnames()}
    assert {"README.md", "CHANGELOG.md", "LICENSE", "setup.py", "docs/format.md", "tests/test_dist.py"} <= found
    assert not [name for name in found if name.startswith((".git", ".venv")) or name.endswith(".pyc")]


def test_the_index_shows_a_whole_description(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.parser.Parser().parsestr(opened.read(name).decode())
    description = str(metadata.get_payload())
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert description.lstrip().startswith("# softcache")
    assert not re.search(r"\]\((?!https?:)", description), "a link that leads nowhere on the index"
    assert "softcache train --student resnet18" in description
    assert metadata["Requires-Python"] == ">=3.10"
    assert {"tensorboard", "wandb", "mlflow", "trackio"} <= set(metadata.get_all("Provides-Extra") or ())


def test_twine_accepts_both(dist: Path) -> None:
    pytest.importorskip("twine")
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir())]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_links_of_the_readme_become_text_and_code_stays() -> None:
    described = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")["described"]
    page = "See [here](docs/a.md#b), [there](https://h/).\n\n![picture](docs/a.svg)\n\n    softcache [x](y)\n\n[a](b)\n"
    assert described(page) == "See here, [there](https://h/).\n\n    softcache [x](y)\n\na\n"
    assert described("a\n\n## More\n\n[b](c) · [d](e)\n\nf\n") == "a\n\nf\n"


def test_every_package_is_listed() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split()) - {"softcache._data"}
    package = Path(softcache.__file__).parent
    there = {".".join(path.parent.relative_to(package.parent).parts) for path in package.rglob("__init__.py")}
    assert listed == there


def test_the_newest_version_of_the_changelog_is_this_one() -> None:
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1] == softcache.__version__
    assert len(set(headings)) == len(headings)


def test_version_says_what_is_asked_first_where_something_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--version") == 0
    said = capsys.readouterr().out.strip()
    installed = torch.__version__.partition("+")[0]
    assert said.startswith(f"softcache {softcache.__version__}, torch {installed}")
    assert said.endswith(f", Python {platform.python_version()}")


def test_the_versions_of_docs_versions_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    for module, title in (
        ("softcache.cache.schema", "cache"),
        ("softcache.config.record", "run or teacher"),
        ("softcache.config.sweep", "sweep or comparison"),
    ):
        number = importlib.import_module(module).VERSION
        assert re.search(rf"^\| {title} \| {number} \|", page, re.MULTILINE), title


assert importlib.util.find_spec("softcache") is not None
