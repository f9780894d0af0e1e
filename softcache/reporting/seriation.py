"""An order in which like things are neighbours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def neighbourly(similarity: Floats) -> npt.NDArray[np.int64]:
    """(C,) int64: an order of C things in which those that are like each other stand near each other.

    ``similarity``: (C, C), none of them negative; the diagonal doesn't count.

    Source: Atkins, Boman, Hendrickson, "A spectral algorithm for seriation and the consecutive ones problem", 1998: the
    order of the eigenvector of the graph's Laplacian with the second smallest eigenvalue. Where there is an order in
    which similarity falls with distance everywhere, this is that order.

    >>> neighbourly(np.array([[0.0, 0.1, 0.9], [0.1, 0.0, 0.9], [0.9, 0.9, 0.0]])).tolist()
    [0, 2, 1]
    """
    both = (similarity + similarity.T) / 2
    np.fill_diagonal(both, 0.0)
    if len(both) < 3 or not both.any():
        return np.arange(len(both))
    # Each thing's similarities sum to about 1, so that one that is like nothing else doesn't make the order alone.
    sums = np.maximum(both.sum(1), 1e-12)
    scaled = both / np.sqrt(sums[:, None] * sums[None, :])
    laplacian = np.diag(scaled.sum(1)) - scaled
    vector = np.linalg.eigh(laplacian)[1][:, 1]
    order = np.argsort(np.round(vector, 9), kind="stable")
    return order if order[0] <= order[-1] else order[::-1]  # an eigenvector has no direction: the same on any machine
