"""Writes the generated tables of the README and the documentation from the committed records and bundled models.

    python -m benchmarks.tables

A table is the text between `<!-- name -->` and `<!-- /name -->`. It is replaced; the rest of the page is kept.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import mean

import typer

import sparsegen
from benchmarks import denoising as noisy
from benchmarks import dip, jpeg, k_sweep, sampling, serving
from benchmarks import encoding as encoded
from benchmarks import table1 as campaign
from sparsegen.common.files import atomic_write, read_lines
from sparsegen.reproduce import paper
from sparsegen.reproduce.tables import (
    MISSING,
    TABLES,
    by_column,
    by_picture,
    change,
    over_rows,
    own_k,
    paired,
    paper_change,
    read_records,
    show_distance,
)
from sparsegen.restoration.settings import PRESETS, SPARSITIES
from sparsegen.zoo.architectures import ARCHITECTURES
from sparsegen.zoo.bundled import MODELS
from sparsegen.zoo.checkpoint import read_config

ROOT = Path(__file__).parent.parent
AGAIN = Path(__file__).parent / "records" / "again.jsonl"
NOISES = {
    "gaussian": "Gaussian, σ {} (given)",
    "poisson": "Poisson, {} photons at white",
    "salt-and-pepper": "salt and pepper on {:.0%} of the pixels, L1 loss",
    "jpeg": "JPEG, quality {}",
}


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def speed() -> str:
    rows = []
    for record in read_records(dip.RECORDS):
        theirs, mine = record["original"], record["fast"]
        to_goal, used, _ = dip.ratios(record)
        rows.append((
            f"{record['image']}, {record['size']}",
            record["instructions"].replace("AVX512", "AVX-512"),
            f"{theirs['best']:.2f} dB, {dip.best_cpu(theirs):.0f} s",
            f"{mine['reached_cpu']:.0f} s, **{to_goal:.1f} times sooner**" if to_goal else "never",
            f"{mine['returned']:.2f} dB, {mine['stop_cpu']:.0f} s",
            f"{used:.0f} times as fast",
        ))  # fmt: skip
    head = (
        "crop", "processor", "best of the original", "`fast` reaches this PSNR after", "`fast` returns",
        "compared with 3,000 iterations of the original",
    )  # fmt: skip
    return markdown(head, rows)


def restorations(preset: str) -> list[dict]:
    """The records of table 3 that have the present settings of a preset: ensemble size and density."""
    return [
        record
        for record in read_records(TABLES["table3"][0])
        if (record["preset"], record["ensemble_size"]) == (preset, PRESETS[preset].ensemble_size)
        and record["density"] in (None, SPARSITIES[record["regularizer"]].density)
    ]


def stop() -> str:
    cells: dict[tuple[str, int], list[dict]] = {}
    for record in restorations("fast"):
        if record["regularizer"] == "l0_inf" and "returned" in record:
            cells.setdefault((record["noise"], record["size"]), []).append(record)
    rows = []
    for (noise, size), found in sorted(cells.items(), key=lambda cell: (-len(cell[1]), cell[0])):
        kind, _, strength = noise.partition(":")
        losses = [record["average"] - record["returned"] for record in found]
        late = mean(record["stopped_at"] / record["average_iteration"] - 1 for record in found)
        rows.append((
            NOISES[kind].format(float(strength) if "%" in NOISES[kind] else strength),
            str(size),
            str(len(found)),
            *(f"{mean(record[what] for record in found):.2f}" for what in ("noisy", "average", "returned")),
            f"{mean(losses):.2f}, {max(losses):.2f}",
            f"{100 * late:+.0f} %",
        ))  # fmt: skip
    head = (
        "noise",
        "crop",
        "runs",
        "noisy",
        "best",
        "returned",
        "loss: mean, worst",
        "iterations beyond the best",
    )
    return markdown(head, rows)


def sparsity() -> str:
    rows = []
    for preset, name in (("paper", "the original network"), ("fast", "`fast`")):
        records = [record for record in restorations(preset) if record["noise"] == "gaussian:25"]
        for size in sorted({record["size"] for record in records}):
            cells = {
                regularizer: {
                    (record["image"], record["seed"]): record
                    for record in records
                    if (record["size"], record["regularizer"]) == (size, regularizer)
                }
                for regularizer in paper.PSNR
            }
            changes = []
            for regularizer in ("l0_inf", "l0"):
                pairs = {
                    cell: (record, cells["baseline"][cell])
                    for cell, record in cells[regularizer].items()
                    if cell in cells["baseline"]
                }
                for what in ("single", "average"):
                    changes.append(f"{paired(by_picture(pairs, what)) or MISSING} ({len(pairs)})")
            rows.append((f"{name}, {size} x {size}", *changes))
    base = paper.PSNR["baseline"]
    theirs = [
        f"{own - of_base:+.2f}"
        for column in ("l0_inf", "l0")
        for own, of_base in zip(paper.PSNR[column], base, strict=True)
    ]
    rows.append(("the paper, up to 768 x 512", *theirs))
    return markdown(("", "L0,∞: single", "averaged", "L0: single", "averaged"), rows)


def bm3d() -> str:
    """BM3D and `fast` on the same noisy crops. The records of the baseline contain BM3D."""
    known = [record for record in read_records(TABLES["table3"][0]) if "bm3d" in record]
    theirs = {
        (record["image"], record["size"], record["noise"], record["seed"]): record["bm3d"] for record in known
    }
    ours = {
        cell: record
        for record in restorations("fast")
        if record["regularizer"] == "l0_inf"
        and (cell := (record["image"], record["size"], record["noise"], record["seed"])) in theirs
    }
    rows = []
    for size in sorted({cell[1] for cell in ours}):
        cells = [cell for cell in ours if cell[1] == size]
        values = (
            mean(ours[cell]["returned"] for cell in cells),
            mean(ours[cell]["average"] for cell in cells),
            mean(theirs[cell] for cell in cells),
        )
        rows.append((f"{size} x {size}, {len(cells)} crops", *(f"{value:.2f} dB" for value in values)))
    return markdown(("σ 25", "`fast` returns", "best of `fast`", "BM3D with known σ"), rows)


def distances(lines: dict[tuple[str, float], dict[str, float]], columns: Iterable[str]) -> str:
    """A table of our distances: one line per architecture and share of the data, with the change in the paper."""
    records = [record for record in read_records(TABLES["table1"][0]) if own_k(record)]
    rows, columns, ours = [], list(columns), []
    for (row, share), fids in lines.items():
        protocol, found = by_column(records, row, share)
        width = f", {protocol['atoms']} of {ARCHITECTURES[row].atoms} atoms" if found else ""
        name = f"`{row}`{width}" + (f", {share:.0%} of the data" if share < 1 else "")
        cells = [show_distance(found, "baseline")]
        for column in columns[1:]:
            cells.append(f"{show_distance(found, column)} (paper {paper_change(fids, column):+.1f} %)")
        rows.append((name, *cells))
        ours.append(found)
    overall = (over_rows(change(found, column) for found in ours) for column in columns)
    rows.append(("mean change ± standard error", *overall))
    return markdown(("", *(f"`{column}`" for column in columns)), rows)


def table1() -> str:
    return distances({(row, 1.0): fids for row, fids in paper.FID.items()}, paper.COLUMNS)


def table2() -> str:
    return distances(paper.LOW_DATA_FID, ("baseline", "l0_inf", "l0", "ml"))


def again() -> str:
    """Runs of table 1 that were repeated, by `benchmarks.table1 --records` with another file."""
    first = {campaign.key(record): record for record in read_records(TABLES["table1"][0])}
    rows = []
    for record in read_records(AGAIN):
        before = first[campaign.key(record)]
        rows.append((
            f"`{record['architecture']}`, `{record['regularizer']}`, seed {record['seed']}",
            *(f"{run['distance']:.1f}, {run['hardware'].split(',')[0]}" for run in (before, record)),
            f"{100 * (record['distance'] / before['distance'] - 1):+.1f} %",
        ))  # fmt: skip
    return markdown(("run", "distance", "repeated", "change"), rows)


def k_sweep_table() -> str:
    """Distances of bundled models at other k than in training."""
    cells: dict[tuple[str, int], dict[float, dict]] = {}
    for record in read_lines(k_sweep.RECORDS):
        name = record["model"]
        if name != k_sweep.REAL and record["steps"] == read_config(MODELS / name)["training"]["steps"]:
            cells.setdefault((name, record["count"]), {})[record["factor"]] = record
    rows = [
        (
            f"`{name}`",
            *(f"{found[factor]['distance']:.0f} ({_ks(found[factor])})" for factor in k_sweep.FACTORS),
        )
        for (name, _), found in cells.items()
        if found.keys() >= set(k_sweep.FACTORS)
    ]
    return markdown(("distance (k)", *(f"{factor:g} k" for factor in k_sweep.FACTORS)), rows)


def real() -> str:
    """The distance between real test images and the training images."""
    return " ".join(
        f"The distance between {record['count']:,} real test images and the training images is "
        f"{record['distance']:.1f}."
        for record in read_lines(k_sweep.RECORDS)
        if record["model"] == k_sweep.REAL
    )


def _ks(record: dict) -> str:
    return ", ".join(map(str, dict.fromkeys(record["k"])))


def bundled() -> str:
    rows = []
    for name in sparsegen.list_models():
        config = read_config(MODELS / name)
        training, evaluation = config["training"], config["evaluation"]
        start = f", from {training['start_from']}" if training["start_from"] else ""
        rows.append((
            f"`{name}`",
            ", ".join(map(str, config["k"])) or "–",
            f"{training['steps']:,} of {training['batch_size']}{start}",
            f"{training['seed']}, {'bfloat16' if training['precision'] == 'bf16' else 'float32'}",
            f"{evaluation['distance']:.0f}",
            ", ".join(f"{share:.2f}" for share in evaluation["density"]),
        ))  # fmt: skip
    return markdown(("bundled model", "k", "steps", "seed, precision", "distance", "density of Γ1, Γ2"), rows)


def bundled_names() -> str:
    """The names of the bundled models, one row per architecture and width."""
    rows: dict[str, list[str]] = {}
    for name in sparsegen.list_models():
        rows.setdefault(name.partition(".")[0], []).append(f"`{name}`")
    return markdown(("architecture", "bundled models"), ((f"`{row}`", ", ".join(rows[row])) for row in rows))


def load() -> str:
    """What `benchmarks.serving` measured."""
    return markdown(("", "goal", "measured"), serving.rows(json.loads(serving.RECORDS.read_text("utf-8"))))


def encoding() -> str:
    """PSNR of images as sparse codes, in dB."""
    rows = []
    for record in read_lines(encoded.RECORDS):
        test, own, omp, z = (record[name] for name in ("test", "own", "omp", "z"))
        rows.append((
            f"`{record['model']}`",
            ", ".join(map(str, record["k"])),
            f"{record['non_zeros']:,.0f}",
            f"{test['mean']:.1f} ({test['least']:.1f})",
            f"{own['mean']:.1f} ({own['least']:.1f})",
            "60" if omp["mean"] >= 60 else f"{omp['mean']:.1f}",
            f"{z['mean']:.1f}",
            f"{record['seconds']:.2f}",
        ))  # fmt: skip
    head = ("model", "k", "non-zeros of Γ1", "test images", "own samples", "OMP", "z", "CPU seconds")
    return markdown(head, rows)


def drawing() -> str:
    """Speed of drawing images, as multiples of torch with topk and scatter, and the share of the projections."""
    rows = []
    for row in json.loads(sampling.RECORDS.read_text("utf-8"))["sampling"]:
        ways = ("torch", sampling.COMPILED, "onnxruntime", sampling.DIVIDED)
        ratios = [f"{row[way]:.2f}" for way in ways]
        where = (f"`{row['model']}`", str(row["threads"]), str(row["batch"]))
        rows.append((*where, *ratios, f"{max(row['share'], 0):.0%}"))
    head = (
        "model",
        "threads",
        "batch",
        "PyTorch",
        "`torch.compile`",
        "onnxruntime",
        "divided",
        "share of projections",
    )
    return markdown(head, rows)


def dejpeg() -> str:
    """The methods against JPEG compression, per quality."""
    names = {"JPEG": "decoded", "TV": "total variation, best strength", "BM3D": "`bm3d`, best σ"}
    return methods(
        jpeg.RECORDS, "quality", names | {"filter": "our filter alone", "dejpeg": "`dejpeg`"}, "BM3D"
    )


def denoising() -> str:
    """The methods against Gaussian noise, per standard deviation."""
    names = {"noisy": "noisy", "BM3D": "`bm3d`, known σ", "quick": "`quick`", "fast": "`fast`"}
    return methods(noisy.RECORDS, "sigma", names, "BM3D")


def methods(records: Path, setting: str, names: Mapping[str, str], base: str) -> str:
    """Means of PSNR, SSIM and processor seconds, and the smallest difference to a base over the pictures."""
    found = read_lines(records)
    rows = []
    for value in sorted({record[setting] for record in found}):
        cells = [record["methods"] for record in found if record[setting] == value]
        for name, label in names.items():
            psnr, ssim, seconds = (
                mean(cell[name][what] for cell in cells) for what in ("psnr", "ssim", "seconds")
            )
            least = min(cell[name]["psnr"] - cell[base]["psnr"] for cell in cells)
            worst = f"{least:+.2f}" if name != base else ""
            rows.append(
                (f"{value} ({len(cells)})", label, f"{psnr:.2f}", worst, f"{ssim:.3f}", f"{seconds:.1f}")
            )
    head = (
        f"{setting} (runs)",
        "method",
        "PSNR in dB",
        f"worst difference to {names[base]}",
        "SSIM",
        "CPU seconds",
    )
    return markdown(head, rows)


BLOCKS: dict[str, Callable[[], str]] = {
    block.__name__: block
    for block in (
        speed, stop, sparsity, bm3d, table1, again, table2, bundled, bundled_names, real, k_sweep_table, load, encoding,
        dejpeg, denoising, drawing
    )
}  # fmt: skip
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fill(text: str) -> str:
    """Replaces the tables of a page.

    Raises:
        ValueError: If a comment does not name a table, or has no end.
    """

    def table(match: re.Match[str]) -> str:
        name, content = match.groups()
        if name not in BLOCKS or content is None:
            raise ValueError(
                f"<!-- {name} --> … <!-- /{name} --> is not a table; there are {', '.join(BLOCKS)}"
            )
        return f"<!-- {name} -->\n{BLOCKS[name]()}\n<!-- /{name} -->"

    return re.sub(r"<!-- (\w+) -->(\n.*?<!-- /\1 -->)?", table, text, flags=re.S)


def main() -> None:
    """Writes the tables of all pages."""
    for page in PAGES:
        with atomic_write(page) as file:
            file.write_text(fill(page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    typer.run(main)
