"""Figures that are part of the page: matplotlib draws them, and their colours are the page's own, light or dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from softcache.extras import missing_extra
from softcache.reporting.elements import Element, element, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours as matplotlib writes them, each of which stands for one of the page's (page.css).
COLOURS = {
    "#010101": "ink",
    "#010102": "muted",
    "#010103": "line",
    "#010104": "student",
    "#010105": "alone",
    "#010106": "teacher",
    "#010107": "map",
    "#010108": "on-map",
    "#010109": "surface",
}
INK, MUTED, LINE, STUDENT, ALONE, TEACHER, MAP, ON_MAP, SURFACE = COLOURS
FONT = 12.0  # pixels, where a figure has its full width
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "softcache",
    "font.size": FONT,
    "axes.titlesize": FONT,
    "axes.labelsize": FONT,
    "legend.fontsize": FONT,
    "text.parse_math": False,  # names of classes may have any characters
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.edgecolor": LINE,
    "grid.color": LINE,
    "axes.grid": True,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "xtick.major.pad": 6.0,
    "ytick.major.pad": 6.0,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.handlelength": 1.2,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.4,
    "legend.borderpad": 0.0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
# What the page has by itself, its font above all.
_UNNEEDED = ("stroke-linejoin", "stroke-linecap: butt", "font-family", "font-stretch", "font-variant", "font-style")
_NAMESPACE = re.compile(r"\{[^}]*\}")
_COLOUR = re.compile("|".join(COLOURS))
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def require_matplotlib() -> None:
    """Errors: ``MissingExtraError`` with the extra that brings it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise missing_extra("softcache report needs matplotlib", "report") from None


def figure(
    name: str, paint: Callable[[Axes], None], *, told: str, caption: str, width: float = 440.0, height: float = 270.0
) -> Element:
    """A figure of the page. ``name``: unique in the page; ``paint``: draws into axes, with the colours of this module;
    ``told``: what is to be seen, for those who don't see it; ``caption``: below it. ``width``, ``height``: pixels of a
    wide screen; it is never wider, and smaller where the screen is narrower."""
    drawn = _themed(_svg(paint, width, height), name)
    drawn.set("role", "img")
    drawn.set("aria-label", plain(told, most=1000))
    drawn.set("style", f"max-width: {width:g}px")
    return element("figure", drawn, element("figcaption", caption))


def legend(axes: Axes, columns: int = 3) -> None:
    """A line of names above the axes."""
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.01), ncols=columns, borderaxespad=0.2)


def _svg(paint: Callable[[Axes], None], width: float, height: float) -> bytes:
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    written = io.BytesIO()
    # A user's own matplotlibrc is left out: the page looks the same everywhere.
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        # The browser has fonts for names that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        drawn = Figure(figsize=(width / 72, height / 72), layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.04))
        paint(drawn.add_subplot())
        drawn.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return written.getvalue()


def _themed(svg: bytes, name: str) -> Element:
    """The picture as a part of a page: without what is of a file of its own, and in the page's colours and font."""
    root = ElementTree.fromstring(svg)
    wanted = {match for own in root.iter() for match in _references(own)}
    for parent in root.iter():
        for child in list(parent):
            if _NAMESPACE.sub("", child.tag) in ("metadata", "style"):
                parent.remove(child)
    for own in root.iter():
        own.tag = _NAMESPACE.sub("", own.tag)
        own.tail = None if own.tail is None or not own.tail.strip() else own.tail
        own.text = None if own.text is None or not own.text.strip() else own.text
        for key, value in list(own.attrib.items()):
            del own.attrib[key]
            changed = _changed(_NAMESPACE.sub("", key), value, name, wanted)
            if changed is not None:
                own.set(*changed)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    _flatten(root)
    return root


def _changed(key: str, value: str, name: str, wanted: set[str]) -> tuple[str, str] | None:
    """An attribute as the page has it."""
    if key == "id":
        return ("id", f"{name}-{value}") if value in wanted else None
    if key == "href":
        return key, f"#{name}-{value[1:]}"
    if key == "clip-path":
        return key, _REFERENCE.sub(lambda match: f"url(#{name}-{match[1]})", value)
    if key == "style":
        kept = [part.strip() for part in value.split(";") if part.strip()]
        kept = [_font(part) for part in kept if not part.startswith(_UNNEEDED)]
        return key, _COLOUR.sub(lambda match: f"var(--{COLOURS[match[0]]})", "; ".join(kept))
    return key, value


def _font(part: str) -> str:
    """A font's size, for the page has one font."""
    match = re.match(r"font: .*?([\d.]+)px", part)
    return f"font-size: {match[1]}px" if match else part


def _references(own: Element) -> set[str]:
    found = {value[1:] for key, value in own.attrib.items() if key.endswith("href") and value.startswith("#")}
    return found | {match for value in own.attrib.values() for match in _REFERENCE.findall(value)}


def _flatten(parent: Element) -> None:
    """Takes away groups that mean nothing, which are half of what matplotlib writes."""
    children: list[Any] = []
    for child in list(parent):
        _flatten(child)
        bare = child.tag == "g" and not child.attrib and not (child.text or "").strip()
        children += list(child) if bare else [child]
    for child in list(parent):
        parent.remove(child)
    parent.extend(child for child in children if child.tag not in ("g", "defs") or len(child))
