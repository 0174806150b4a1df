"""Figures of generators: their atoms (fig. 5), the density of their codes (fig. 3b), and samples."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sparsegen.common.names import known_names
from sparsegen.pictures import figures, images
from sparsegen.reproduce.tables import TABLES, read_records
from sparsegen.reproduce.tradeoff import tradeoff
from sparsegen.zoo import noise
from sparsegen.zoo.checkpoint import from_pretrained
from sparsegen.zoo.generator import Generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def atoms_sheet(dictionary: Tensor, columns: int = 16) -> np.ndarray:
    """Arranges the atoms of an image dictionary; zero is mid-gray, and each atom is scaled by its largest magnitude.

    Shape: (atoms, 3, h, w) -> uint8 (H, W, 3).
    """
    return images.grid(images.atom_pictures(dictionary.float().cpu().numpy()), columns, gap=1)


def atoms(generators: Mapping[str, Generator], seed: int = 0) -> "Figure":
    """Draws the atoms of D1 and of D_eff = D1 D2, one row per generator (fig. 5). They do not depend on the seed."""
    rows = []
    for name, generator in generators.items():
        pairs = {"$D_1$": generator.dictionary(1), "$D_{eff} = D_1 D_2$": generator.effective_dictionary()}
        titles = [
            f"{name}, {which}: {len(dictionary)} atoms of {' × '.join(map(str, dictionary.shape[2:]))} × 3"
            for which, dictionary in pairs.items()
        ]
        rows.append((titles, [atoms_sheet(dictionary) for dictionary in pairs.values()]))
    inches = [0.35 + 5.1 * max(sheet.shape[0] / sheet.shape[1] for sheet in sheets) for _, sheets in rows]
    figure = figures.figure(10.4, sum(inches))
    panels = figure.subplots(len(rows), 2, squeeze=False, height_ratios=inches)
    for (titles, sheets), row in zip(rows, panels, strict=True):
        for axes, title, sheet in zip(row, titles, sheets, strict=True):
            axes.imshow(sheet, interpolation="nearest")
            axes.set_title(title, fontsize=10)
            axes.set_anchor("N")
            axes.set_axis_off()
    return figure


@torch.no_grad()
def needle_density(generator: Generator, count: int = 256, seed: int = 0, level: int = 1) -> np.ndarray:
    """Computes the mean share of non-zeros at each needle of Γ_level over `count` images of a seed.

    Shape: (H, W), in [0, 1].
    """
    network = generator.view()
    total = torch.zeros(generator.code_shapes[level - 1][1:], device=network.device)
    labels = noise.labels(count, generator.classes, seed, names=generator.class_names)
    for first, z in noise.batches(count, generator.z_dim, seed):
        given = [z] if labels is None else [z, labels[first : first + len(z)]]
        _, codes = network(*(torch.from_numpy(array).to(network.device) for array in given))
        total += (codes[level - 1] != 0).float().mean(1).sum(0)
    return (total / count).cpu().numpy()


def density(generators: Mapping[str, Generator], count: int = 256, seed: int = 0) -> "Figure":
    """Draws a map of the needle density of Γ1 for each generator, with a common color scale (fig. 3b)."""
    maps = {name: needle_density(generator, count, seed) for name, generator in generators.items()}
    top = max(values.max() for values in maps.values())
    columns = min(5, len(maps))
    rows = -(-len(maps) // columns)
    figure = figures.figure(2.6 * columns + 0.6, 2.8 * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for axes, (name, values) in zip(panels, maps.items(), strict=False):
        shown = axes.imshow(values, vmin=0, vmax=top, cmap="viridis", interpolation="nearest")
        axes.set_title(f"{name}\nmean {values.mean():.1%}", fontsize=9)
    figure.colorbar(shown, ax=panels, label="share of non-zeros in a needle of $Γ_1$", shrink=0.85)
    return figure


def samples(generators: Mapping[str, Generator], count: int = 20, seed: int = 0) -> "Figure":
    """Draws the first images of a seed, one row per generator; the classes of a conditional one in order."""
    figure = figures.figure(0.5 * count, 0.72 * len(generators))
    rows = figure.subplots(len(generators), 1, squeeze=False)[:, 0]
    for axes, (name, generator) in zip(rows, generators.items(), strict=True):
        classes = len(noise.titles(generator.classes, generator.class_names))
        labels = [index % classes for index in range(count)] if classes else None
        axes.imshow(images.grid(generator.sample(count, seed, labels=labels), count), interpolation="nearest")
        axes.set_title(name, fontsize=8, loc="left", pad=2)
        axes.set_axis_off()
    return figure


FIGURES: dict[str, Callable[..., "Figure"]] = {"atoms": atoms, "density": density, "samples": samples}


def draw(what: str, models: Sequence[str], seed: int = 0, device: str | torch.device | None = "cpu") -> bytes:
    """Draws a figure as PNG.

    Args:
        what: "atoms", "density" or "samples" of models; or "tradeoff" (figures 3a and 6).
        models: One or more models; for the tradeoff, architectures (default: all that have records).
        device: As in `from_pretrained`.

    Raises:
        ValueError: If there is no such figure, no model is given, or an architecture has no records; as
            `from_pretrained`.
    """
    if what == "tradeoff":
        return figures.png(tradeoff(read_records(TABLES["table1"][0]), models))
    if what not in FIGURES:
        raise ValueError(f"no figure {what!r}: there are {known_names(what, [*FIGURES, 'tradeoff'])}")
    if not models:
        raise ValueError(f"{what} needs a model, e.g. dcgan.ml")
    generators = {model: from_pretrained(model, device=device) for model in models}
    if what == "samples" and len(models) == 1:  # as pixels, without a frame
        return images.png(images.grid(generators[models[0]].sample(64, seed)), 2)
    return figures.png(FIGURES[what](generators, seed=seed))
