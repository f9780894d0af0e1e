"""``python -m softcache`` and the ``softcache`` command."""

from __future__ import annotations

import sys


def main() -> None:
    from softcache.cli._main import run

    sys.exit(run())


if __name__ == "__main__":
    main()
