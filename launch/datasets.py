"""The reference script's data: real images, as arrays, without the internet."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

__all__ = ["LOADERS", "load"]

Split = tuple[np.ndarray, np.ndarray]

_FASHION = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def load(name: str) -> tuple[Split, Split]:
    """Training and test data: images as float32 in [0, 1] with a channel, labels as int64."""
    return LOADERS[name]()


def _digits() -> tuple[Split, Split]:
    """scikit-learn's 1,797 scanned digits of 8 x 8 pixels; every fifth is for the test."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    test = np.arange(len(images)) % 5 == 0
    return (images[~test], labels[~test]), (images[test], labels[test])


def _fashion_mnist() -> tuple[Split, Split]:
    """The 70,000 images of Fashion-MNIST, 28 x 28 pixels (Xiao et al. 2017, arXiv 1708.07747)."""
    keras_home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    folders = [keras_home / "datasets" / "fashion-mnist", Path("/usr/share/datasets/fashion-mnist")]
    if "FASHION_MNIST_DIR" in os.environ:
        folders.insert(1, Path(os.environ["FASHION_MNIST_DIR"]))
    for folder in folders:
        if all(_file(folder, name) for names in _FASHION.values() for name in names):
            splits = {split: tuple(_idx(_file(folder, name)) for name in names) for split, names in _FASHION.items()}
            return tuple(
                ((images / 255).astype("float32")[..., None], labels.astype("int64"))
                for images, labels in (splits["train"], splits["test"])
            )
    raise SystemExit(
        "Fashion-MNIST was not found. Looked for its four idx files (.gz or not) in the Keras cache, "
        f"{folders[0]}; in FASHION_MNIST_DIR={os.environ.get('FASHION_MNIST_DIR', '(not set)')}; and in {folders[-1]} "
        "(Debian's package dataset-fashion-mnist). Fix: put them in one of these, or use --data digits."
    )


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _idx(path: Path) -> np.ndarray:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">i4", count=dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


LOADERS: dict[str, Callable[[], tuple[Split, Split]]] = {"digits": _digits, "fashion_mnist": _fashion_mnist}
