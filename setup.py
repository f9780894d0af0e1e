"""What setup.cfg can't say: the description on a package index is the README, without links that lead nowhere there."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup


def described(readme: str) -> str:
    """Of links to files of this repository the text alone, and no pictures of it; links elsewhere stay. Sections that
    are lists of such links are left out, and blocks of code stay as they are."""
    readme = re.sub(r"^## [^\n]*\n\n(?:\[[^\]]*\]\([^)]*\)(?: · )?)+\n\n", "", readme, flags=re.MULTILINE)
    parts = re.split(r"(^```[\s\S]*?^```$|^(?: {4}.*\n?)+)", readme, flags=re.MULTILINE)
    for number in range(0, len(parts), 2):
        text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*", "", parts[number])
        text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
        parts[number] = re.sub(r"\[([^\]]*)\]\((?!https?:|mailto:)[^)]*\)", r"\1", text)
    return "".join(parts)


if __name__ == "__main__":
    setup(
        long_description=described(Path(__file__).with_name("README.md").read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
    )
