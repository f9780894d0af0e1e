"""What several networks do alike to the same pixels, before their first layers, is done once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from softcache.models._network import Network


class Sharing:
    """Keeps what was made of the last pixels, for networks that want the same of them."""

    def __init__(self) -> None:
        self._pixels: Tensor | None = None
        self._made: dict[Hashable, tuple[Tensor, int]] = {}

    def prepared(self, pixels: Tensor, wanted: Hashable, make: Callable[[Tensor], Tensor]) -> Tensor:
        """What ``make`` gives for ``pixels``, made anew unless it is there. ``wanted``: all that it depends on."""
        if pixels is not self._pixels:
            self._pixels, self._made = pixels, {}
        found = self._made.get(wanted)
        # A network that writes into its input would leave the others something else.
        if found is None or found[0]._version != found[1]:
            made = make(pixels)
            found = self._made[wanted] = made, made._version
        return found[0]


@contextlib.contextmanager
def sharing(networks: Sequence[Network]) -> Iterator[None]:
    """Within it, networks on a CPU share what they make of the same pixels. On a GPU it is a small part of a step, and
    a recorded step gets all of its batches in the same memory."""
    shared = Sharing()
    parts = [network for network in networks if all(p.device.type == "cpu" for p in network.parameters())]
    for network in parts if len(parts) > 1 else ():
        network.sharing = shared
    try:
        yield
    finally:
        for network in parts:
            network.sharing = None
