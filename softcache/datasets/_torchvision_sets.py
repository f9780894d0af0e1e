"""What torchvision's classification datasets don't say of themselves: splits, channels, sizes, default recipes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from softcache.datasets._pixels import Statistics

# labels that are not one class an image, or splits that share no classes
REFUSED = {
    "celeba": "its labels are 40 attributes, not one class an image",
    "lfwpeople": "the people of its test split are not in its train split",
    "lfwpairs": "its labels are of pairs of images",
    "kinetics": "it holds videos",
    "hmdb51": "it holds videos",
    "ucf101": "it holds videos",
    "movingmnist": "it holds videos",
    "cocodetection": "its labels are boxes",
    "cocaptions": "its labels are texts",
    "vocdetection": "its labels are boxes",
    "vocsegmentation": "its labels are maps",
    "cityscapes": "its labels are maps",
    "sbdataset": "its labels are maps",
    "widerface": "its labels are boxes",
    "kitti": "its labels are boxes",
}


@dataclass(frozen=True)
class TorchvisionSet:
    """One dataset. ``train`` and ``test`` are the arguments of ``torchvision.datasets.<cls>`` for the splits.

    ``test`` None: it comes without a test split, ``_subset.rows_for_test`` makes one. ``classes``: their number,
    where the class has no names. ``statistics`` None: measured where pixels are in memory, else ImageNet's.
    ``loose``: its files lie in the root itself, so it gets a folder of its own to be downloaded to. ``unordered``:
    torchvision lists its files in the order of the disk. ``download``: torchvision can fetch it.
    """

    cls: str
    train: dict[str, Any] = field(default_factory=lambda: {"split": "train"})
    test: dict[str, Any] | None = field(default_factory=lambda: {"split": "test"})
    channels: int = 3
    size: int = 224
    resize: int = 256
    recipe: str = "rrc+flip"
    classes: int | None = None
    statistics: Statistics | None = None
    loose: bool = False
    unordered: bool = False
    download: bool = True
    needs: str | None = None


def _small(cls: str, recipe: str, channels: int, size: int = 32, **more: Any) -> TorchvisionSet:
    return TorchvisionSet(cls, channels=channels, size=size, resize=size, recipe=recipe, **more)


def _flagged(cls: str, recipe: str, channels: int, **more: Any) -> TorchvisionSet:
    return _small(cls, recipe, channels, train={"train": True}, test={"train": False}, **more)


def _emnist(kind: str) -> TorchvisionSet:
    arguments = {"split": kind}
    return _small("EMNIST", "crop", 1, train={**arguments, "train": True}, test={**arguments, "train": False})


_VAL = {"split": "val"}

SETS: dict[str, TorchvisionSet] = {
    "caltech101": TorchvisionSet("Caltech101", train={}, test=None),
    "caltech256": TorchvisionSet("Caltech256", train={}, test=None),
    "cifar10": _flagged("CIFAR10", "crop+flip", 3, statistics=((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))),
    "cifar100": _flagged("CIFAR100", "crop+flip", 3, statistics=((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))),
    # crops would change how many objects there are to count
    "clevrclassification": TorchvisionSet("CLEVRClassification", test=_VAL, recipe="flip", classes=11),
    "country211": TorchvisionSet("Country211"),
    "dtd": TorchvisionSet("DTD"),
    "emnist": _emnist("balanced"),
    "emnist-balanced": _emnist("balanced"),
    "emnist-byclass": _emnist("byclass"),
    "emnist-bymerge": _emnist("bymerge"),
    "emnist-digits": _emnist("digits"),
    "emnist-letters": _emnist("letters"),
    "emnist-mnist": _emnist("mnist"),
    "eurosat": _small("EuroSAT", "rrc+flip", 3, size=64, train={}, test=None),
    "fashionmnist": _flagged("FashionMNIST", "crop+flip", 1, statistics=((0.2860,), (0.3530,))),
    "fer2013": _small("FER2013", "crop+flip", 1, size=48, classes=7, download=False),
    "fgvcaircraft": TorchvisionSet("FGVCAircraft", train={"split": "trainval"}),
    "flowers102": TorchvisionSet("Flowers102", classes=102, needs="scipy"),
    "food101": TorchvisionSet("Food101"),
    "gtsrb": _small("GTSRB", "crop", 3, classes=43),
    "imagenette": TorchvisionSet("Imagenette", test=_VAL),
    "inaturalist": TorchvisionSet(
        "INaturalist",
        train={"version": "2021_train"},
        test={"version": "2021_valid"},
        loose=True,
        unordered=True,
    ),
    "kmnist": _flagged("KMNIST", "crop", 1),
    "mnist": _flagged("MNIST", "crop", 1, statistics=((0.1307,), (0.3081,))),
    "omniglot": _small("Omniglot", "crop", 1, train={"background": True}, test=None),
    "oxfordiiitpet": TorchvisionSet("OxfordIIITPet", train={"split": "trainval"}),
    "pcam": _small("PCAM", "crop+flip", 3, size=96, classes=2),
    "places365": TorchvisionSet("Places365", train={"split": "train-standard"}, test=_VAL, loose=True),
    "qmnist": _flagged("QMNIST", "crop", 1),
    # flipped text is no text
    "renderedsst2": TorchvisionSet("RenderedSST2", recipe="rrc"),
    "semeion": _small("SEMEION", "crop", 1, train={}, test=None, classes=10, loose=True),
    "stanfordcars": TorchvisionSet("StanfordCars", download=False, needs="scipy"),
    "stl10": _small("STL10", "crop+flip", 3, size=96),
    "sun397": TorchvisionSet("SUN397", train={}, test=None, unordered=True),
    "svhn": _small("SVHN", "crop", 3, classes=10, loose=True, needs="scipy"),
    "usps": _flagged("USPS", "crop", 1, classes=10, loose=True),
}
