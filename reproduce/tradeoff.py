"""Figures 3a and 6 of the paper, drawn from the committed records."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import mean
from typing import TYPE_CHECKING

from sparsegen.pictures import figures
from sparsegen.reproduce.tables import Record, by_column, protocol_of
from sparsegen.zoo.architectures import ARCHITECTURES
from sparsegen.zoo.regularizers import REGULARIZERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osD^PvX*<>"  # of the regularizers, in this order and repeated


def tradeoff(records: Iterable[Record], rows: Sequence[str] = ()) -> "Figure":
    """Draws the distance over the density of Γ1, one panel per architecture (figures 3a and 6).

    A small marker is one run, a large one the mean of the runs with the same k.

    Args:
        records: The records of table 1.
        rows: Architectures (default: all that have records).

    Raises:
        ValueError: Listing the architectures that have records, if a given one has none.
    """
    runs: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record["share"] == 1:
            runs[record["architecture"]].append(record)
    known = [row for row in ARCHITECTURES if row in runs]
    for row in rows or known:
        if row not in runs:
            raise ValueError(f"no records of {row!r}: only of {', '.join(known)}")
    shown = list(rows or known)
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = figures.figure(3.4 * columns + 0.4, 2.9 * lines + 0.4)
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for panel, row in zip(panels, shown, strict=False):
        protocol, _ = by_column(runs[row], row, 1.0)
        for color, column in enumerate(REGULARIZERS):
            points = defaultdict(list)
            for record in runs[row]:
                if record["regularizer"] == column and protocol_of(record) == protocol:
                    points[tuple(record["k"])].append((record["density"][0], record["distance"]))
            style = {"color": f"C{color}", "marker": MARKERS[color % len(MARKERS)]}
            for index, found in enumerate(points.values()):
                density, distance = (mean(values) for values in zip(*found, strict=True))
                panel.plot(
                    density, distance, markersize=9, label=None if index else column, linestyle="", **style
                )
                panel.plot(*zip(*found, strict=True), markersize=4, alpha=0.4, linestyle="", **style)
        panel.set_title(f"{row}, {protocol['atoms']} of {ARCHITECTURES[row].atoms} atoms", fontsize=9)
        panel.set(xlabel="share of non-zeros in $Γ_1$", ylabel=protocol["metric"])
        panel.margins(0.15)
    for panel in figure.axes[len(shown) :]:
        panel.set_axis_off()
    handles = {
        text: line
        for axes in figure.axes
        for line, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=3 if columns == 1 else len(handles),
        fontsize=9,
    )
    return figure
