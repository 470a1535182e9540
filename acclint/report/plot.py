"""`--plot`: the curves of `acclint equivalence` as a picture. matplotlib is imported only here, when asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acclint import Problem
from acclint.probe.difference import BANDS
from acclint.probe.tables import Curve, Experiment

if TYPE_CHECKING:
    from acclint.probe.study import Study

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # told apart by the colour-blind too
_MARKERS = "os^Dv*"


def check(path: str) -> None:
    """Fail before a minute of work is done, not after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise Problem("--plot needs matplotlib: pip install acclint[plot]") from None
    target = Path(path)
    folder = target.parent
    if target.suffix.lower() != ".png":
        raise Problem(f"--plot writes PNG, so the name must end in .png, not {target.name!r}")
    if target.is_dir() or not folder.is_dir():
        raise Problem(f"cannot write {path}: {'it is a folder' if target.is_dir() else f'no folder {folder}'}")
    if not os.access(target if target.exists() else folder, os.W_OK):
        raise Problem(f"cannot write {path}: permission denied")


def plot_study(study: Study, path: str) -> None:
    """Relative error by micro-batch size, and by layer where it differs."""
    names = [name for name, _ in study.layers]
    panels: list[Callable[[Any], None]] = [lambda axes: _errors(axes, study.curves, "by micro-batch size", band=True)]
    if names:
        panels.append(lambda axes: _bars(axes, names, [error for _, error in study.layers]))
    _draw(panels, study.answer, path)


def plot_demo(experiments: Sequence[Experiment], path: str) -> None:
    """The three pictures that explain most: two trajectories, BatchNorm, memory."""
    curves = {e.key: e.curves for e in experiments}
    _draw(
        [
            lambda axes: _steps(axes, curves["000"]),
            lambda axes: _errors(axes, curves["002"], "002: only BatchNorm makes accumulation differ", band=True),
            lambda axes: _memory(axes, curves["004"]),
        ],
        "Gradient accumulation: what differs from the large batch, and what does not",
        path,
    )


def _draw(panels: Sequence[Callable[[Any], None]], title: str, path: str) -> None:
    # the object interface: pyplot would look for a display and keep global state
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * len(panels), 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axes)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=13, fontweight="bold", wrap=True)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise Problem(f"cannot write {path}: {error.strerror or error}") from None


def _lines(axes: Any, curves: Sequence[Curve], overlap: bool = False) -> None:
    for i, curve in enumerate(curves):
        points = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if y is not None]
        style: dict[str, Any] = {
            "color": _COLOURS[i % len(_COLOURS)],
            "marker": _MARKERS[i % len(_MARKERS)],
            "label": curve.name,
        }
        if overlap:  # later curves thinner and dashed, so that equal ones are seen through them
            style |= {"markersize": 11 - 2 * i, "linewidth": 5.5 - 1.3 * i, "linestyle": "--" if i else "-"}
        axes.plot([x for x, _ in points], [y for _, y in points], **style)


def _errors(axes: Any, curves: Sequence[Curve], title: str, band: bool) -> None:
    """Relative error over micro-batch size, both logarithmic, with the bands of the verdict behind."""
    floor = 1e-17  # an error of 0 has no logarithm
    shown = [
        Curve(c.name, c.x, tuple(None if y is None else max(y, floor) for y in c.y)) for c in curves
    ]  # fmt: skip
    _lines(axes, shown)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = sorted({x for c in curves for x in c.x})
    axes.set_xticks(sizes, [f"{x:.0f}" for x in sizes])
    axes.minorticks_off()
    axes.set_xlabel("micro-batch size")
    axes.set_ylabel("relative error of the gradient")
    axes.set_title(title)
    low, high = min(floor * 10, 1e-17), max([y for c in shown for y in c.y if y is not None] + [1e-2]) * 5
    axes.set_ylim(low, high)
    if band:
        equal, different = BANDS["float64"]
        axes.axhspan(low, equal, color="#009e73", alpha=0.08, lw=0)
        axes.axhspan(different, high, color="#d55e00", alpha=0.10, lw=0)
        axes.text(0.02, equal, "equal (rounding)", transform=axes.get_yaxis_transform(), va="top", color="#00664b")
        axes.text(0.02, different, "different", transform=axes.get_yaxis_transform(), va="bottom", color="#a04000")
    axes.legend(frameon=True, fontsize=8, loc="center right")


def _bars(axes: Any, names: Sequence[str], errors: Sequence[float]) -> None:
    positions = range(len(names))[::-1]
    axes.barh(list(positions), errors, color=_COLOURS[1])
    axes.set_yticks(list(positions), names)
    for position, error in zip(positions, errors, strict=True):
        axes.annotate(f"{error:.2g}", (error, position), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.margins(x=0.12)
    axes.set_xlabel("relative error of the parameter's gradient")
    axes.set_title("where it differs")


def _steps(axes: Any, curves: Sequence[Curve]) -> None:
    _lines(axes, curves)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks([0, 1, 10, 100, 499], ["0", "1", "10", "100", "499"])
    axes.minorticks_off()
    axes.set_yscale("log")
    axes.set_xlabel("update")
    axes.set_ylabel("relative error of the gradient")
    axes.set_title("000: two trajectories drift apart by rounding alone")
    axes.legend(frameon=True, fontsize=8, loc="upper left")


def _memory(axes: Any, curves: Sequence[Curve]) -> None:
    _lines(axes, curves, overlap=True)
    axes.set_xticks([1, 2, 4, 8])
    axes.set_xlabel("micro-batches so far")
    axes.set_ylabel("activations kept (MB)")
    axes.set_title("004: one backward at the end keeps every graph")
    axes.legend(frameon=True, fontsize=8, loc="upper left")
