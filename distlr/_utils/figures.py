"""Pictures as files, by matplotlib, which is optional."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any

from distlr._utils.atomic_files import write_bytes
from distlr.errors import ConfigurationError

__all__ = ["picture"]


@contextlib.contextmanager
def picture(path: str | os.PathLike[str], *, rows: int = 1, size: tuple[float, float] = (8, 4.5)) -> Iterator[Any]:
    """Yields a list of axes to draw on, and writes the drawing as a PNG, whole or not at all. No display is needed.

    Args:
        path: the file.
        rows: how many axes, under each other, with one horizontal axis.
        size: in inches, of 120 dots each.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    try:
        # pyplot is not used: it would choose a backend for the whole process, which may be a notebook's.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(f"A picture needs matplotlib: {error}. Fix: pip install 'distlr[plot]'.") from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, sharex=True, squeeze=False)[:, 0])
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    yield axes
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_bytes(path, image.getvalue())
