"""The message that a package is missing has a command that works for the installation at hand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import softcache
from softcache.errors import MissingExtraError
from softcache.extras import install_command, missing_extra

CHECKOUT = Path(softcache.__file__).resolve().parents[1]


def installed(folder: Path, direct_url: dict[str, Any] | None) -> str:
    """What the message's module says where pip has installed it into ``folder`` from an address, or from an index."""
    (folder / "softcache").mkdir(parents=True)
    (folder / "softcache" / "__init__.py").touch()
    for name in ("extras.py", "errors.py"):
        shutil.copy(CHECKOUT / "softcache" / name, folder / "softcache")
    metadata = folder / "softcache-9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: softcache\nVersion: 9\n")
    if direct_url is not None:
        (metadata / "direct_url.json").write_text(json.dumps(direct_url))
    code = "import sys; sys.path.insert(0, sys.argv[1]); import softcache.extras as e; print(e.install_command('s3'))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(folder)], capture_output=True, text=True, check=True, cwd=folder
    )
    return done.stdout.strip()


def test_of_a_checkout_it_is_that_of_the_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(CHECKOUT)
    assert install_command("report") == "pip install -e '.[report]'"
    monkeypatch.chdir(tmp_path)
    assert install_command("report") == f"pip install -e '{CHECKOUT}[report]'"


@pytest.mark.parametrize(
    ("direct_url", "source"),
    [
        (None, ""),
        (
            {"url": "file:///dist/softcache-9-py3-none-any.whl", "archive_info": {}},
            " @ file:///dist/softcache-9-py3-none-any.whl",
        ),
        ({"url": "file:///src/softcache", "dir_info": {}}, " @ file:///src/softcache"),
        (
            {"url": "https://host/softcache.git", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}},
            " @ git+https://host/softcache.git",
        ),
        (
            {"url": "https://host/s.git", "vcs_info": {"vcs": "git", "commit_id": "0", "requested_revision": "v1"}},
            " @ git+https://host/s.git@v1",
        ),
    ],
)
def test_of_an_installation_it_is_that_of_its_source(
    direct_url: dict[str, Any] | None, source: str, tmp_path: Path
) -> None:
    assert installed(tmp_path / "site", direct_url) == f"pip install 'softcache[s3]{source}'"


def test_the_error_says_what_needs_what() -> None:
    with pytest.raises(MissingExtraError, match="^--on ray needs Ray: " + re.escape(install_command("ray")) + "$"):
        raise missing_extra("--on ray needs Ray", "ray")


def test_commands_are_written_in_one_place_and_for_extras_that_there_are() -> None:
    extras = set(
        re.findall(r"^(\w[\w-]*) =", (CHECKOUT / "setup.cfg").read_text().partition("extras_require]")[2], re.M)
    )
    for path in CHECKOUT.glob("softcache/**/*.py"):
        text = path.read_text()
        assert not re.search(r"pip install [\"']?softcache\[", text), path
        for named in re.findall(r"(?:missing_extra|install_command)\([^)]*\"([\w-]+)\"\)", text):
            assert named in extras, path
