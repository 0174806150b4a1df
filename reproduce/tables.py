"""Prints tables 1 to 3 of the paper with our measurements, from the committed records."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from sparsegen.common.extras import install_command
from sparsegen.common.files import read_lines
from sparsegen.reproduce import paper
from sparsegen.zoo.architectures import ARCHITECTURES
from sparsegen.zoo.regularizers import REGULARIZERS
from sparsegen.zoo.spec import ModelSpec

RECORDS = Path(__file__).parent / "records"
PROTOCOL = (
    "atoms", "steps", "batch_size", "count", "reference_count", "metric", "share", "rate", "fingerprint",
)  # fmt: skip
MISSING = "-"
OLD_NAMES = {  # of the fields of restoration presets
    "members": "ensemble_size",
    "swift": "mixed_precision",
    "fall": "max_psnr_drop",
}
Record = dict[str, Any]  # of one run


def read_records(path: Path) -> list[Record]:
    """Reads the records of a campaign, and replaces old names of fields.

    Early records of table 1 have no `share` and `rate`: they used all of the data and the learning rates of the recipe.
    """
    return [{"share": 1.0, "rate": 1.0, **_rename(record)} for record in read_lines(path)]


def _rename(record: Record) -> Record:
    """Replaces old names of preset fields, both keys and in the repr of presets, e.g. in "settings"."""
    record = {OLD_NAMES.get(name, name): value for name, value in record.items()}
    for name in record.keys() & {"settings", "original_settings"}:
        record[name] = re.sub(
            rf"\b({'|'.join(OLD_NAMES)})=", lambda found: f"{OLD_NAMES[found[1]]}=", record[name]
        )
    return record


def own_k(record: Record) -> bool:
    """Whether a run had the k of its column, i.e. is not part of a sweep over k."""
    spec = ModelSpec.of(record["architecture"], record["regularizer"], record["atoms"])
    return [k_range.k for k_range in spec.k_ranges] == list(record["k"])


def show_table1(console: Console, records: Iterable[Record]) -> None:
    """Prints table 1: all architectures, trained on all of the data."""
    whole = [record for record in records if record["share"] == 1 and own_k(record)]
    rows = {row: (by_column(whole, row, 1.0), fids) for row, fids in paper.FID.items()}
    _show(console, "Table 1: CIFAR-10", rows, paper.COLUMNS)


def show_table2(console: Console, records: Iterable[Record]) -> None:
    """Prints table 2: BigGAN and DiffCRBigGAN, trained on a part of the data."""
    part = [record for record in records if record["share"] < 1 and own_k(record)]
    rows = {
        f"{row}, {share:.0%} of the data": (by_column(part, row, share), fids)
        for (row, share), fids in paper.LOW_DATA_FID.items()
    }
    _show(console, "Table 2: a part of CIFAR-10", rows, ["baseline", "l0_inf", "l0", "ml"])


Distances = dict[str, dict[tuple[int, str], float]]  # of a row: by regularizer, and by seed and precision


def by_column(records: Iterable[Record], row: str, share: float) -> tuple[Record, Distances]:
    """Returns the most frequent protocol of a row (of equal ones the newest) and its distances; empty without runs."""
    protocols: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        if record["architecture"] == row and record["share"] == share:
            protocols[tuple(protocol_of(record).values())].append(record)
    if not protocols:
        return {}, {}
    found = max(reversed(protocols.values()), key=len)
    distances: Distances = defaultdict(dict)
    for record in found:
        distances[record["regularizer"]][record["seed"], record["precision"]] = record["distance"]
    return protocol_of(found[0]), dict(distances)


def protocol_of(record: Record) -> Record:
    """The settings that must be equal for distances to be comparable."""
    return {name: record[name] for name in PROTOCOL}


def _show(
    console: Console,
    title: str,
    rows: dict[str, tuple[tuple[Record, Distances], dict[str, float]]],
    columns: Iterable[str],
) -> None:
    table = Table("", *columns, title=title, title_justify="left", box=None)
    notes = []
    for name, ((protocol, distances), fids) in rows.items():
        table.add_row(name, *(show_distance(distances, column) for column in columns))
        table.add_row("  paper's FID", *(_paper(fids, column) for column in columns), style="dim")
        if protocol:
            notes.append(f"{name}: {_scale(name.split(',')[0], protocol)}")
    ours = {name: distances for name, ((_, distances), _) in rows.items()}
    table.add_row(
        "all rows", *(over_rows(change(found, column) for found in ours.values()) for column in columns)
    )
    overall = (
        over_rows(
            paper_change(fids, column)
            for name, (_, fids) in rows.items()
            if change(ours[name], column) is not None
        )
        for column in columns
    )
    table.add_row("  of these in the paper", *overall, style="dim")
    console.print(table)
    console.print(
        "Ours: mean ± s.d. (runs), and the change relative to the baseline's runs of the same seed and precision; "
        "lower is better. All rows: mean of the changes ± its standard error. "
        "Metric, widths and training lengths differ from the paper's: compare changes, not numbers. "
        "-: not measured."
    )
    for note in notes:
        console.print(f"  {note}", highlight=False)


def show_distance(distances: Distances, column: str) -> str:
    """A cell: mean ± s.d. of the distances of a column, their number, and the change relative to the baseline."""
    found = distances.get(column)
    if not found:
        return MISSING
    values = list(found.values())
    text = (
        f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "") + f" ({len(values)})"
    )
    percent = change(distances, column)
    return text if percent is None else f"{text} {percent:+.1f} %"


def change(distances: Distances, column: str) -> float | None:
    """The change from the baseline to a column in percent, over seeds and precisions of both; None without runs."""
    found, base = distances.get(column, {}), distances.get("baseline", {})
    both = found.keys() & base.keys()
    if column == "baseline" or not both:
        return None
    return 100 * (mean(found[run] for run in both) / mean(base[run] for run in both) - 1)


def paper_change(fids: dict[str, float], column: str) -> float | None:
    """The change from the baseline to a column in the paper, in percent; None for the baseline."""
    return None if column == "baseline" else 100 * (fids[column] / fids["baseline"] - 1)


def over_rows(changes: Iterable[float | None]) -> str:
    """The mean of the changes of a column, its standard error, and the number of rows better than the baseline."""
    known = [percent for percent in changes if percent is not None]
    if not known:
        return ""
    better = sum(percent < 0 for percent in known)
    error = f" ± {stdev(known) / math.sqrt(len(known)):.1f}" if len(known) > 1 else ""
    return f"{mean(known):+.1f}{error} %, better in {better} of {len(known)}"


def _paper(fids: dict[str, float], column: str) -> str:
    percent = paper_change(fids, column)
    return f"{fids[column]:.2f}" + ("" if percent is None else f" {percent:+.1f} %")


def _scale(row: str, protocol: Record) -> str:
    full, rate = ARCHITECTURES[row].atoms, protocol["rate"]
    faster = "" if rate == 1 else f", {rate:g} times the learning rate"
    return (
        f"{protocol['atoms']} of {full} atoms, {protocol['steps']:,} steps of {protocol['batch_size']} images "
        f"in bfloat16 or float32{faster}; {protocol['metric']} of {protocol['count']:,} samples to "
        f"{protocol['reference_count']:,} images"
    )


# ---- table 3 ----


def paired(differences: list[float]) -> str:
    """The mean of paired differences with its 95 % confidence interval (Student's t)."""
    if len(differences) < 2:
        return f"{differences[0]:+.2f}" if differences else ""
    try:
        from scipy.stats import t as student
    except ImportError as error:
        raise ImportError(f"the intervals of table 3 need scipy: {install_command('train')}") from error

    half = student.ppf(0.975, len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    return f"{mean(differences):+.3f} ± {half:.3f}"


def by_picture(pairs: dict[tuple[str, int], tuple[Record, Record]], what: str) -> list[float]:
    """Returns a difference per picture, the mean over its seeds, since seeds of one picture are not independent."""
    differences: dict[str, list[float]] = defaultdict(list)
    for (image, _), (record, base) in pairs.items():
        differences[image].append(record[what] - base[what])
    return [mean(values) for values in differences.values()]


def spread(values: list[float]) -> str:
    """The mean ± s.d."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


Column = tuple[str, float | None]  # regularizer and density
Cells = dict[tuple[str, int], Record]  # of a column: by picture and seed


def show_table3(console: Console, records: Iterable[Record]) -> None:
    """Prints table 3: for each preset, size and noise, one line per regularizer and density.

    Means and standard deviations are over the seeds, of the mean over the pictures that every seed has. Differences
    to the baseline are paired (same picture, noise and seed) and averaged over the seeds of a picture; their interval
    is over the pictures.
    """
    groups: dict[tuple[Any, ...], dict[Column, Cells]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        column = record["regularizer"], record["density"]
        groups[
            record["preset"], record["settings"], record["ensemble_size"], record["size"], record["noise"]
        ][column][record["image"], record["seed"]] = record
    for (preset, settings, ensemble_size, size, noise), columns in groups.items():
        table = Table(
            "regularizer", "density", "runs", "single", "change (95 %)", "average", "change (95 %)",
            "stop loses: mean, worst", "past the peak", box=None,
        )  # fmt: skip
        base = columns.get(("baseline", None), {})
        for (regularizer, density), found in sorted(columns.items(), key=_place):
            pairs = {cell: (record, base[cell]) for cell, record in found.items() if cell in base}
            stopped = [record for record in found.values() if "returned" in record]
            losses = [record["average"] - record["returned"] for record in stopped]
            late = [record["stopped_at"] / record["average_iteration"] - 1 for record in stopped]
            is_base = regularizer == "baseline"
            table.add_row(
                regularizer,
                f"{density:g}" if density else "-",
                str(len(found)),
                spread(over_seeds(found, "single")),
                "" if is_base else paired(by_picture(pairs, "single")),
                spread(over_seeds(found, "average")),
                "" if is_base else paired(by_picture(pairs, "average")),
                f"{mean(losses):.3f}, {max(losses):.3f}" if losses else "",
                f"{100 * mean(late):+.0f} %" if late else "",
            )
            if noise == "gaussian:25" and regularizer in paper.PSNR:
                table.add_row("  paper's", "", "", *_paper_psnr(regularizer), style="dim")
        precision = "bfloat16" if "mixed_precision=True" in settings else "float32"
        networks = "1 network" if ensemble_size == 1 else f"mean of {ensemble_size} networks"
        console.print(
            f"\n{preset} ({precision}, {networks}), {size} x {size}, {noise}; PSNR in dB, mean ± s.d. over "
            f"the seeds"
        )
        console.print(table)
        if known := [record["bm3d"] for record in base.values() if "bm3d" in record]:
            console.print(f"BM3D with known sigma: {mean(known):.2f} over {len(known)} runs")


def _place(item: tuple[Column, Cells]) -> tuple[int, float]:
    (regularizer, density), _ = item
    return list(REGULARIZERS).index(regularizer), density or 0


def _paper_psnr(regularizer: str) -> Iterable[str]:
    for own, base in zip(paper.PSNR[regularizer], paper.PSNR["baseline"], strict=True):
        yield f"{own:.2f}"
        yield "" if regularizer == "baseline" else f"{own - base:+.2f}"


def over_seeds(found: Cells, what: str) -> list[float]:
    """Returns a mean per seed, over the pictures that every seed has."""
    seeds = {seed for _, seed in found}
    whole = [name for name in {name for name, _ in found} if all((name, seed) in found for seed in seeds)]
    if not whole:
        return [mean(record[what] for record in found.values())]
    return [mean(found[name, seed][what] for name in whole) for seed in sorted(seeds)]


Show = Callable[[Console, Iterable[Record]], None]
TABLES: dict[str, tuple[Path, Show]] = {  # the file of the records, and the function that prints them
    "table1": (RECORDS / "table1.jsonl", show_table1),
    "table2": (RECORDS / "table1.jsonl", show_table2),
    "table3": (RECORDS / "table3.jsonl", show_table3),
}
