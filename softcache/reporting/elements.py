"""HTML as a tree of elements, which the standard library writes out: whatever a folder names is text and never
markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from xml.etree import ElementTree

from softcache.addresses import visible

Element = ElementTree.Element
Child = Element | str | None
MOST = 400  # characters of a text that a folder names


def plain(text: object, most: int = MOST) -> str:
    """A text for people, from anywhere: one that can be shown, and not longer than ``most`` characters.

    >>> plain("a\\x00b"), plain("abcdef", most=3)
    ('a�b', 'ab…')
    """
    whole = visible(text)
    return whole if len(whole) <= most else whole[: most - 1] + "…"


def element(tag: str, *children: Child, **attributes: object) -> Element:
    """``element("td", "97.2", class_="number", data_sort=0.972)``. Attributes that are None are left out."""
    made = ElementTree.Element(tag)
    for name, value in attributes.items():
        if value is not None:
            made.set(name.rstrip("_").replace("_", "-"), plain(value, most=100_000))
    return fill(made, children)


def fill(parent: Element, children: Iterable[Child]) -> Element:
    """Appends text and elements to an element, which it returns."""
    for child in children:
        if child is None:
            continue
        if isinstance(child, ElementTree.Element):
            parent.append(child)
            continue
        text, last = plain(child, most=100_000), parent[-1] if len(parent) else None
        if last is None:
            parent.text = (parent.text or "") + text
        else:
            last.tail = (last.tail or "") + text
    return parent


def found(root: Element, id_: str) -> Element:
    """The element of a template that has this id."""
    return next(own for own in root.iter() if own.get("id") == id_)


def paragraph(*children: Child, class_: str | None = None) -> Element:
    return element("p", *children, class_=class_)


def definitions(pairs: Iterable[tuple[str, Child]]) -> Element:
    """Names and values below each other."""
    rows: list[Element] = []
    for name, value in pairs:
        rows += [element("dt", name), element("dd", value)]
    return element("dl", *rows)


def table(header: Iterable[Element], rows: Iterable[Element], *, caption: str, class_: str | None = None) -> Element:
    """A table in a box of its own, so that a wide one moves within the page and not the page."""
    made = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *header)),
        element("tbody", *rows),
        class_=class_,
    )
    return element("div", made, class_="scroll", tabindex=0, role="region", aria_label=caption)


def head(*children: Child, number: bool = False) -> Element:
    """A column's name."""
    return element("th", *children, scope="col", class_="number" if number else None)


def cell(*children: Child, sort: float | None = None, number: bool = False) -> Element:
    """``sort``: what a number's column is sorted by."""
    return element("td", *children, data_sort=sort, class_="number" if number else None)


def counted_table(header: Mapping[str, bool], rows: Iterable[Iterable[object]], *, caption: str) -> Element:
    """A table of texts. ``header``: name of a column → whether it holds numbers."""
    numbers = list(header.values())
    lines = [
        element("tr", *(cell(str(value), number=number) for value, number in zip(row, numbers, strict=True)))
        for row in rows
    ]
    return table([head(name, number=number) for name, number in header.items()], lines, caption=caption)
