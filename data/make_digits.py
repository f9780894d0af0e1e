"""Makes digits.npz from scikit-learn's copy of the UCI digits: ``python data/make_digits.py [OUT]``.

Needs scikit-learn and softcache. The file comes out the same, byte for byte, on every machine: it is neither
compressed nor dated, and the split is a hash of the row numbers.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from softcache.datasets._subset import rows_for_test


def main(out: Path) -> None:
    """Writes images (1797, 8, 8) uint8 in 0..16, labels (1797,) uint8, test (1797,) bool; scikit-learn's order."""
    bunch = load_digits()
    arrays = {
        "images": bunch.images.astype(np.uint8),
        "labels": bunch.target.astype(np.uint8),
        "test": rows_for_test(bunch.target),
    }
    assert np.array_equal(arrays["images"], bunch.images), "the pixels are whole numbers"
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, array, version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data.getvalue())
    print(f"{out}: {int((~arrays['test']).sum())} train, {int(arrays['test'].sum())} test")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("digits.npz"))
