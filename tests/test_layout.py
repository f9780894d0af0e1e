"""What imports what, how big files are, and that help doesn't wait for torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import softcache
from softcache import registry
from softcache.errors import UsageError

ROOT = Path(softcache.__file__).parent
# From the top down: a module imports only from rows below its own.
ROWS = [
    "cli",
    "stages",
    "reporting",
    "functional",
    "sweeping",
    "config",
    "training",
    "evaluating",
    "converting",
    "exporting",
    "dumping",
    "stream",
    "cache",
    "codecs",
    "losses",
    "views",
    "models",
    "datasets",
    "tracking",
    "registry",
    "store",
    "lowest",
]
LOWEST = {
    "addresses", "atomic", "distributed", "console", "device", "errors", "extras", "fields", "hub", "inputs",
    "localfiles", "locks", "ragged", "remembered", "strictjson", "threads", "userfile", "_version",
}  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))


def row(parts: tuple[str, ...]) -> int:
    """A module's row; ``softcache`` itself and ``__main__`` stand above all."""
    if len(parts) < 2 or parts[1] == "__main__":
        return -1
    return ROWS.index("lowest" if parts[1] in LOWEST else parts[1])


def imports(path: Path) -> set[tuple[str, ...]]:
    """All that a file imports from softcache, at any depth of its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "softcache":
            module = tuple(node.module.split("."))
            found |= {(*module, alias.name) if len(module) == 1 else module for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {tuple(a.name.split(".")) for a in node.names if a.name.split(".")[0] == "softcache"}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    if path.name == "__init__.py":
        return
    own = row(("softcache", *path.relative_to(ROOT).with_suffix("").parts))
    for module in imports(path):
        if module == ("softcache",) or module[1].startswith("__"):
            continue
        assert row(module) >= own, f"{path.relative_to(ROOT)} imports {'.'.join(module)} from a row above its own"


def test_files_come_into_being_in_one_place() -> None:
    """A rename over what is there is what ``atomic`` is for; ``verify`` sets a damaged manifest aside by one."""
    users = {str(p.relative_to(ROOT)) for p in FILES if re.search(r"\bos\.replace\(", p.read_text())}
    assert users == {"atomic.py", "stages/verify.py"}


def test_only_cli_imports_click() -> None:
    users = {p.relative_to(ROOT).parts[0] for p in FILES if re.search(r"^\s*(import|from) click", p.read_text(), re.M)}
    assert users == {"cli"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_help_imports_no_torch() -> None:
    code = (
        "import sys, softcache.cli._main as m; m.run(['--help']); print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


@pytest.mark.parametrize("kind", sorted(registry.NOUNS))
def test_every_component_can_be_had(kind: str) -> None:
    assert registry.names(kind)
    for name in registry.names(kind):
        assert isinstance(registry.component(kind, name), type)


@pytest.mark.parametrize("kind", ["codecs", "losses", "views"])
def test_specs_round_trip(kind: str) -> None:
    for name in registry.names(kind):
        if name == "python":
            continue
        spec = registry.canonical(name, registry.create(kind, name))
        assert registry.canonical(name, registry.create(kind, spec)) == spec


@given(st.floats(0, 1, exclude_min=True), st.floats(0, 1, exclude_min=True), st.floats(0, 1000, exclude_min=True))
@example(0.00005, 1.0, 0.00001)
def test_specs_of_numbers_round_trip(one: float, other: float, ratio: float) -> None:
    rrc = registry.component("views", "rrc")
    noise = registry.component("views", "noise")
    for name, made in {
        "rrc": rrc(scale=(min(one, other), max(one, other)), ratio=(ratio, 1000.0)),
        "noise": noise(std=one),
    }.items():
        assert registry.create("views", registry.canonical(name, made)) == made


@pytest.mark.parametrize("spec", ["crop:pad=4,pad=2", "crop:pad=4,pad =2", "crop: pad=4, pad=4"])
def test_an_option_is_given_once(spec: str) -> None:
    with pytest.raises(UsageError, match="gives 'pad' twice"):
        registry.create("views", spec)


def test_public_names_exist() -> None:
    for name in softcache.__all__:
        assert getattr(softcache, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'dmup'"):
        _ = softcache.dmup  # type: ignore[attr-defined]
