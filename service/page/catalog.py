"""The list of models on the page: their order, groups and descriptions, and a strip of samples of each."""

import base64
import io
import math
from collections.abc import Mapping
from functools import cache
from html import escape

import numpy as np
from PIL import Image

from sparsegen.export.runtime import OnnxSampler
from sparsegen.pictures import images
from sparsegen.service.models import Model
from sparsegen.zoo.k_range import KRange

STRIP = 6  # images in the strip of a model
OPEN = 2  # networks whose models are listed without a click
ARCHITECTURES = {
    "dcgan": "DCGAN",
    "cgan": "Conditional DCGAN",
    "wgan_gp": "Wasserstein GAN with gradient penalty",
    "msgan": "Mode-seeking GAN",
    "sngan": "GAN with spectral normalization",
    "sagan": "Self-attention GAN",
    "ssgan": "Self-supervised GAN",
    "biggan": "BigGAN",
    "diffcr_biggan": "BigGAN with augmentation and consistency",
    "biggan_tapered": "BigGAN with narrow last layers",
    "wgan_gp_resnet": "Residual Wasserstein GAN with gradient penalty",
    "sngan_resnet": "Residual GAN with spectral normalization",
}
RECIPES = {"projected": "a discriminator on the features of a frozen classifier"}
DATA = {"cifar10": "CIFAR-10"}
# The distance of as many real test images, per metric and images; the last record of benchmarks/records/k_sweep.jsonl.
REAL = {("fd-efficientnet-lite0", "cifar10", 10_000): 22.4}


def merit(model: Model) -> tuple[float, int, str]:
    """Sort key: the smallest distance first; models without one last, those with the most projected levels first."""
    distance = (model.config.get("evaluation") or {}).get("distance", math.inf)
    return distance, -len(model.sampler.k_ranges), model.name


def network(model: Model) -> str:
    """The name of its network. The models of a network have the same name up to the last dot."""
    return model.name.rpartition(".")[0] or model.name


def networks(models: Mapping[str, Model]) -> list[list[Model]]:
    """The models by network, each list and the list of lists in the order of `merit`."""
    groups: dict[str, list[Model]] = {}
    for model in sorted(models.values(), key=merit):
        groups.setdefault(network(model), []).append(model)
    return list(groups.values())


def title(model: Model) -> str:
    """The label of a model in a list."""
    parts = [model.name]
    if model.classes:
        parts.append(f"{len(model.classes)} classes")
    if (distance := merit(model)[0]) < math.inf:
        parts.append(f"distance {distance:.0f}")
    return " · ".join(parts)


def description(model: Model) -> str:
    """The architecture, the regularizer, the images and the length of the training, in one line."""
    config, training = model.config, model.config.get("training") or {}
    architecture = config["architecture"]
    parts = [ARCHITECTURES.get(architecture, architecture), constraint(model)]
    if (recipe := config.get("recipe", "paper")) != "paper":
        parts.append(RECIPES.get(recipe, f"recipe {recipe}"))
    if data := training.get("data"):
        parts.append(DATA.get(data, data.rpartition("/")[2]))
    if steps := training.get("steps"):
        start = training.get("start_from")
        parts.append(f"{steps:,} training steps" + (f" from {start.rpartition('/')[2]}" if start else ""))
    return ", ".join(parts)


def constraint(model: Model) -> str:
    """The regularizer of a model in words, with its k of training."""
    k_ranges = model.sampler.k_ranges
    if k_ranges:
        unit = k_ranges[0].unit
        if len({(k_range.k, k_range.limit) for k_range in k_ranges}) == 1:
            levels = " and ".join(f"Γ{k_range.level}" for k_range in k_ranges)
            return f"{_kept(k_ranges[0])} entries kept per {unit} of {levels}"
        return " and ".join(
            f"{_kept(k_range)} entries kept per {k_range.unit} of Γ{k_range.level}" for k_range in k_ranges
        )
    return "an L1 penalty on Γ1" if model.sampler.regularizer == "l1" else "codes without a constraint"


def _kept(k_range: KRange) -> str:
    return f"{k_range.k:,} of {k_range.limit:,}"


def distance(model: Model) -> str:
    """The measured distance, with that of real images; empty if it was not measured."""
    evaluation = model.config.get("evaluation") or {}
    if "distance" not in evaluation:
        return ""
    key = evaluation["metric"], evaluation.get("data"), evaluation.get("count")
    real = f" (real test images: {REAL[key]})" if key in REAL else ""
    return f"distance {evaluation['distance']:.0f}{real}"


@cache
def strip(sampler: OnnxSampler) -> str:
    """The first images of seed 0 side by side, as a data URL."""
    pixels = sampler.sample(STRIP)
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(list(pixels), axis=1)).save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def cover(models: Mapping[str, Model]) -> bytes:
    """A PNG with images of the best model, for previews of links; 1192 x 664 pixels for images of 32 x 32."""
    return _cover(min(models.values(), key=merit).sampler)


@cache
def _cover(sampler: OnnxSampler) -> bytes:
    return images.png(images.grid(sampler.sample(45), columns=9, gap=1), 4)


def listing(models: Mapping[str, Model], chosen: str) -> str:
    """All models, grouped by network, best first, with a button for each; HTML."""
    groups = [
        _group(alike, chosen, place < OPEN or any(model.name == chosen for model in alike))
        for place, alike in enumerate(networks(models))
    ]
    return f'<div class="networks">{"".join(groups)}</div>'


def _group(alike: list[Model], chosen: str, opened: bool) -> str:
    best, count = alike[0], len(alike)
    regularizers = f"{count} regularizers, best distance" if count > 1 else "distance"
    known = merit(best)[0] < math.inf
    note = f"{regularizers} {merit(best)[0]:.0f}" if known else f"{count} models"
    return (
        f'<details class="network"{" open" * opened}><summary>{_picture(best)}'
        f"<span><b>{escape(network(best) if count > 1 else best.name)}</b> {escape(note)}</span></summary>"
        f"{''.join(_entry(model, chosen) for model in alike)}</details>"
    )


def _entry(model: Model, chosen: str) -> str:
    facts = ", ".join(filter(None, (description(model), distance(model))))
    return (
        f'<button class="model" data-model="{escape(model.name)}" aria-pressed="{str(model.name == chosen).lower()}">'
        f"{_picture(model)}<b>{escape(model.name)}</b><span>{escape(facts)}</span></button>"
    )


def _picture(model: Model) -> str:
    size = model.sampler.image_size
    return f'<img alt="" src="{strip(model.sampler)}" width="{STRIP * size}" height="{size}">'
