"""What to do where a package of an extra is missing: the command depends on where softcache was installed from."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from pathlib import Path

from softcache.errors import MissingExtraError

ROOT = Path(__file__).resolve().parents[1]  # the checkout, or where packages are installed


def missing_extra(needed: str, extra: str) -> MissingExtraError:
    """The error to raise. ``needed``: what needs which package: ``--on ray needs Ray``."""
    return MissingExtraError(f"{needed}: {install_command(extra)}")


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation: from the checkout that runs, from the wheel, folder or
    repository that it was installed from, or else by the name that an index knows."""
    if (ROOT / "pyproject.toml").is_file():
        place = "." if Path.cwd() == ROOT else str(ROOT)
        return f"pip install -e {shlex.quote(f'{place}[{extra}]')}"
    origin = _origin()
    return f"pip install {shlex.quote(f'softcache[{extra}]' + (f' @ {origin}' if origin else ''))}"


def _origin() -> str | None:
    """The address that pip installed from, None where that was an index.

    Source: PyPA, Recording the Direct URL Origin of installed distributions (PEP 610).
    """
    try:
        text = importlib.metadata.distribution("softcache").read_text("direct_url.json")
        found = json.loads(text) if text else {}
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    url = found.get("url")
    version_control = found.get("vcs_info")
    if version_control is None:
        return url
    revision = version_control.get("requested_revision")
    return f"{version_control.get('vcs')}+{url}" + (f"@{revision}" if revision else "")
