"""Links in README.md and all pages: files and headings that they lead to exist, and every page can be found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness_pages import ROOT

PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "data").glob("*.md")})
_LINK = re.compile(r"(?<!`)!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def without_code(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$|^ {4}[^\n]*$", "", text, flags=re.M | re.S)


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """All anchors of a page; headings of the same text are numbered."""
    found: dict[str, int] = {}
    made = set()
    for heading in re.findall(r"^#{1,6} +(.*?)\s*$", without_code(page), re.M):
        name = slug(heading)
        made.add(f"{name}-{found[name]}" if name in found else name)
        found[name] = found.get(name, 0) + 1
    return made


def links(page: Path) -> list[str]:
    return _LINK.findall(re.sub(r"`[^`\n]*`", "code", without_code(page)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"(https|mailto):", link):
            continue
        assert not link.startswith("http:"), f"{page.name}: {link} is not encrypted"
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link} leads nowhere"
        assert target.is_relative_to(ROOT), f"{page.name}: {link} leads out of the project"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {link}: there is no such heading"


def test_every_page_is_in_the_index() -> None:
    """docs/README.md names each page of docs/ once in its tables, and README.md leads to it."""
    index = ROOT / "docs" / "README.md"
    named = [(index.parent / link.partition("#")[0]).resolve() for link in links(index) if not link.startswith("http")]
    for page in (ROOT / "docs").rglob("*.md"):
        assert page == index or named.count(page.resolve()) >= 1, f"docs/README.md doesn't name {page.name}"
    assert "docs/README.md" in links(ROOT / "README.md")


def test_anchors_are_those_of_github() -> None:
    assert slug("The `--T` option, and what it means") == "the---t-option-and-what-it-means"
    assert slug("16 bits and other channels") == "16-bits-and-other-channels"
    assert slug("[A link](x.md) in a heading") == "a-link-in-a-heading"
