"""The page around the sections: one file that loads nothing, from nowhere."""

from __future__ import annotations

import base64
import hashlib
import importlib
import pkgutil
from collections.abc import Sequence
from importlib import resources
from typing import Protocol, cast
from xml.etree import ElementTree

from softcache._version import __version__
from softcache.reporting import sections
from softcache.reporting.elements import Element, element, fill, found, paragraph
from softcache.reporting.findings import Findings, Left, Section

GENERATOR = f"softcache {__version__}"
MARK = b'<meta name="generator" content="softcache '  # near the beginning of every page that softcache made


class Part(Protocol):
    """A module of ``sections``. ``PLACE``: it stands before those of higher numbers; ``TITLE``: its heading."""

    __name__: str
    PLACE: int
    TITLE: str

    def section(self, findings: Findings) -> Section:
        """Its content, or why there is none."""
        ...


def parts() -> list[Part]:
    """All sections, in the page's order."""
    names = [own.name for own in pkgutil.iter_modules(sections.__path__) if not own.name.startswith("_")]
    modules = [cast(Part, importlib.import_module(f"{sections.__name__}.{name}")) for name in names]
    return sorted(modules, key=lambda part: part.PLACE)


def page(
    title: str, about: str, figures: Sequence[tuple[str, str, str]], made: Sequence[tuple[Part, Section]]
) -> bytes:
    """The file. ``about``: a line below the title; ``figures``: the numbers at the top, each with its name and what it
    is of; ``made``: sections with their parts."""
    root = ElementTree.fromstring(_asset("page.html"))
    style, script = _asset("page.css"), _asset("page.js")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; "
        "base-uri 'none'; form-action 'none'"
    )
    found(root, "policy").set("content", policy)
    found(root, "generator").set("content", GENERATOR)
    found(root, "style").text = style
    found(root, "script").text = script
    fill(found(root, "name"), [title])
    fill(found(root, "title"), [title])
    fill(found(root, "about"), [about])
    fill(found(root, "figures"), [_figure(*one) for one in figures])
    fill(found(root, "contents"), [_link(part) for part, one in made if not isinstance(one, Left)])
    fill(found(root, "sections"), [_section(part, one) for part, one in made])
    for own in root.iter():
        if own.get("id") in ("policy", "generator", "style", "script", "name"):
            del own.attrib["id"]
    return b"<!DOCTYPE html>\n" + ElementTree.tostring(root, encoding="utf-8", method="html") + b"\n"


def _figure(name: str, value: str, of: str) -> Element:
    return element("div", element("dt", name), element("dd", element("b", value), element("span", of)))


def _id(part: Part) -> str:
    return part.__name__.rpartition(".")[2]


def _link(part: Part) -> Element:
    return element("a", part.TITLE, href=f"#{_id(part)}")


def _section(part: Part, made: Section) -> Element:
    heading = element("h2", part.TITLE)
    if isinstance(made, Left):
        return element("section", heading, paragraph(made.why, class_="left"), id=_id(part), class_="missing")
    return element("section", heading, made, id=_id(part))


def _asset(name: str) -> str:
    return (resources.files("softcache.reporting") / "assets" / name).read_text("utf-8")
