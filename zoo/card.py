"""The model card of a checkpoint: the README.md on the Hugging Face Hub, made from its config.

The part between two markers is written anew by each push. Other text, and other metadata, are kept.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsegen.common.text import escape_controls
from sparsegen.zoo.bundled import GRAPH
from sparsegen.zoo.hub import PICTURES, may_be_id
from sparsegen.zoo.k_range import KRange

if TYPE_CHECKING:
    from sparsegen.zoo.generator import Generator
    from sparsegen.zoo.spec import ModelSpec

HOME = "https://github.com/sparsegen/sparsegen"
INSTALL = f'pip install "sparsegen[torch,onnxruntime] @ git+{HOME}"'
DATASETS = {
    "cifar10": ("uoft-cs/cifar10", "CIFAR-10")
}  # ids and names on the Hub, by the name in config.json
BEGIN = "<!-- sparsegen: begin. `sparsegen push` writes this part; text above and below it is kept. -->"
END = "<!-- sparsegen: end -->"
CONDITIONAL = "class-conditional-image-generation"  # a tag
METRICS = {
    "fid": "This is the FID: the Fréchet distance of Inception features.",
    "fd-efficientnet-lite0": """This is the Fréchet distance of EfficientNet-Lite0 features. It is not an FID and
must not be compared with one, those of the paper included.""",
    "fd-cifar10-classifier": """This is the Fréchet distance of the features of a small CIFAR-10 classifier. It is not
an FID and must not be compared with one, those of the paper included.""",
}
BIASED = """The model was trained against these features, so this distance is biased in its favor."""
QUALITY = {
    "class_accuracy": "share of samples recognized as the requested class",
    "class_accuracy_real": "the same share of real test images",
    "precision": "precision, the share of samples within the real images",
    "recall": "recall, the share of real images within the samples",
    "compared": "number of samples, and of real images, used for precision and recall",
    "memorized": "share of samples nearer to a training image than 95 % of real test images are (real ones: 0.05)",
}
FACTS = {
    "recipe": "recipe",
    "features": "frozen network under the discriminator's projected heads",
    "data": "images",
    "share": "share of these images used for training",
    "steps": "steps",
    "batch_size": "batch size",
    "rate": "factor of the recipe's learning rates",
    "seed": "seed",
    "precision": "mixed precision",
    "flip": "random horizontal flips",
    "augment": "augmented images for the discriminator (DiffAugment)",
    "start_from": "started from",
    "edited": "weights changed after this training",
}
ONLY_IF_TRUE = ("augment",)  # some recipes have an augmentation of their own
LIMITS = """## Limits

- It generates {size} x {size} images similar to its training images, and {labels}.
- The paper's FIDs do not apply to these weights. Only the figures on this card were measured on them.
- A code shows which atoms an image consists of; the atoms have no semantic meaning by construction.
- It reproduces the biases of its training images. Its images are not photographs."""
LABELED = "its content can only be\n  chosen by class"
UNLABELED = "it has no labels: its content\n  cannot be chosen"
PAPER = f"""## Paper

Roy Ganz and Michael Elad, [*Improved Image Generation via Sparsity*](https://arxiv.org/abs/2104.00464). This model is
an independent reimplementation, not by its authors. The code is at [{HOME.removeprefix("https://")}]({HOME}).

```bibtex
@article{{ganz2021improved,
  title   = {{Improved Image Generation via Sparsity}},
  author  = {{Ganz, Roy and Elad, Michael}},
  journal = {{arXiv preprint arXiv:2104.00464}},
  year    = {{2021}}
}}
```"""


def model_card(
    generator: "Generator",
    config: Mapping[str, Any],
    repo_id: str,
    files: Collection[str] = (),
    sweep: Sequence[int] = (),
    existing: str | None = None,
    previous: Mapping[str, Any] | None = None,
    license_id: str | None = None,
) -> str:
    """Returns the README.md of a model on the Hub.

    Args:
        generator: Its architecture is described; its weights are not used.
        config: The checkpoint's config.json, from `read_config` or `Generator.make_config`.
        repo_id: owner/name, which the examples open.
        files: Names of the other files of the repository: the card names ONNX files and pictures if they are there.
        sweep: k of each row of the picture sparsity.png.
        existing: The card in the repository, if any. Its text outside of the markers is kept, and its other metadata.
        previous: The config.json in the repository, if any. What the existing card has from it is not kept.
        license_id: The license that was requested; None: that of the config or of the existing card.

    Raises:
        ValueError: If the existing card has only one of the markers, metadata that cannot be read, or another license
            than the config and none was requested.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK
    from yaml import YAMLError, safe_dump

    spec = generator.spec
    sections = [
        BEGIN,
        f"# {repo_id.rpartition('/')[2]}",
        _what(spec, generator),
        _pictures(generator, files, sweep),
        _use(generator, repo_id, onnx=GRAPH in files),
        _labels(generator.classes, config.get("class_names", ())),
        _k(generator.k_ranges),
        measured({**config, "recipe": spec.recipe}),
        LIMITS.format(size=generator.image_size, labels=LABELED if generator.classes else UNLABELED),
        PAPER,
        END,
    ]
    body = "\n\n".join(section for section in sections if section)
    existing = existing or "---\n{}\n---\n"
    try:
        if not (found := REGEX_YAML_BLOCK.match(existing)) and existing.lstrip().startswith("---"):
            raise ValueError("it begins with ---, and the second --- is missing")
        # An empty block: without one, the client logs a warning.
        old = ModelCard(existing if found else f"---\n{{}}\n---\n{existing}", ignore_metadata_errors=True)
    except (ValueError, YAMLError) as error:
        raise ValueError(
            f"the metadata at the head of the README.md of {repo_id!r} cannot be read: correct it on the Hub, or "
            f"remove the file; {' '.join(str(error).split())[:100]}"
        ) from None
    above, begin, rest = old.text.partition(BEGIN)
    _, end, below = rest.partition(END)
    if begin and not end:
        raise ValueError(
            f"the README.md of {repo_id!r} has the first marker of sparsegen and not the second, {END!r}: add it where "
            "your own text starts, or remove both"
        )
    if END in old.text and not begin:
        raise ValueError(
            f"the README.md of {repo_id!r} has the second marker of sparsegen and not the first, {BEGIN!r}: add it "
            "where your own text ends, or remove both"
        )
    theirs, ours = old.data.get("license"), config.get("license")
    if theirs and ours and theirs != ours and not license_id:
        raise ValueError(
            f"the README.md of {repo_id!r} has the license {theirs!r}, and the model {ours!r}: give the one "
            "that is meant (--license)"
        )
    text = "\n\n".join(part for part in (above.strip(), body, below.strip()) if part)
    metadata = {
        **old.data.to_dict(),
        **_metadata(generator, config, repo_id, files, old.data.to_dict(), previous or {}),
    }
    known = {key: value for key, value in metadata.items() if value is not None}
    return f"---\n{safe_dump(known, sort_keys=False, allow_unicode=True)}---\n\n{text}\n"


def _metadata(
    generator: "Generator",
    config: Mapping[str, Any],
    repo_id: str,
    files: Collection[str],
    old: Mapping[str, Any],
    previous: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the metadata that a push sets; None removes an entry.

    What an earlier push wrote is replaced; tags, datasets and a base model of the author are kept.
    """
    from huggingface_hub import EvalResult, ModelCardData

    evaluation, task = config.get("evaluation", {}), "unconditional-image-generation"
    ours = ["sparse-coding", "gan", config["architecture"], config["regularizer"]]
    ours += [CONDITIONAL] if generator.classes else []
    ours += ["onnx"] if GRAPH in files else []
    stale = {"onnx"}
    if previous:
        stale |= {CONDITIONAL, str(previous.get("architecture")), str(previous.get("regularizer"))}
    theirs = [tag for tag in old.get("tags") or [] if tag not in {*ours, *stale}]
    (dataset_id, dataset), base_model = _sources(config)
    (old_dataset, _), old_base = _sources(previous)
    datasets = None if old.get("datasets") in (old_dataset, [old_dataset]) else old.get("datasets")
    results = []
    if evaluation and dataset_id and dataset:  # only the independent distance
        metric, value = evaluation["metric"], round(evaluation["distance"], 2)
        results = [
            EvalResult(task, dataset_id, dataset, metric, value, metric_name=f"Fréchet distance ({metric})")
        ]
    given = {
        "license": config.get("license") or old.get("license"),
        "library_name": "sparsegen",
        "pipeline_tag": None if generator.classes else task,  # the Hub has none for it
        "tags": ours + theirs,
        "datasets": [dataset_id] if dataset_id else datasets,
        "base_model": base_model or (None if old.get("base_model") == old_base else old.get("base_model")),
    }
    index = ModelCardData(model_name=repo_id.rpartition("/")[2], eval_results=results or None).to_dict()
    return given | {"model-index": index.get("model-index")}


def _sources(config: Mapping[str, Any]) -> tuple[tuple[str | None, str | None], str | None]:
    """Returns the id and the name of the dataset on the Hub, and the id of the starting model; None if unknown."""
    training = config.get("training")
    about = training if isinstance(training, dict) else {}
    data, base = str(about.get("data") or ""), about.get("base_model")
    dataset = DATASETS.get(data, (data, data) if may_be_id(data) else (None, None))
    return dataset, base if isinstance(base, str) and may_be_id(base) else None


def measured(config: Mapping[str, Any]) -> str:
    """The sections of the model card that need only config.json: training and measurements. Does not import torch."""
    training, evaluation = config.get("training", {}), config.get("evaluation", {})
    recipe = config.get("recipe")
    sections = _training(training and {"recipe": recipe, **training}), _distance(evaluation)
    return "\n\n".join(section for section in sections if section)


def _what(spec: "ModelSpec", generator: "Generator") -> str:
    from sparsegen.zoo.regularizers import REGULARIZERS

    (atoms, _, *first), effective = generator.dictionary().shape, generator.effective_dictionary().shape[2:]
    code_1, code_2 = map(_by, generator.code_shapes)
    kind = "class-conditional GAN generator" if generator.classes else "GAN generator"
    size = _by((generator.image_size,) * 2)
    return f"""A {kind} of {size} images whose inner representation is a sparse code: the architecture
{spec.architecture} and the regularizer {spec.regularizer}, with {spec.atoms} atoms.
{REGULARIZERS[spec.regularizer].about}
The image is the product of the code Γ1 and a convolutional dictionary D1 of {atoms} atoms of {_by(first)} pixels.
Without norms and ReLUs, an entry of Γ2 adds an atom of D1 D2, of {_by(effective)} pixels. Γ1 is {code_1}, Γ2 is
{code_2} (channels, height, width)."""


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _pictures(generator: "Generator", files: Collection[str], sweep: Sequence[int]) -> str:
    samples, sparsity = PICTURES
    parts = [f"![Samples of the seed 0, not selected]({samples})"] if samples in files else []
    if sparsity in files:
        rows = ", ".join(map(str, sweep))
        parts.append(
            f"The same seeds with other values of k, the number of non-zeros kept; the rows from top to bottom are\n"
            f"k = {rows}:\n\n![Samples with k = {rows}]({sparsity})"
        )
    return "\n\n".join(parts)


def _use(generator: "Generator", repo_id: str, onnx: bool) -> str:
    k_ranges, size = generator.k_ranges, generator.image_size
    k = f", k={max(1, k_ranges[0].k // 2)}" if k_ranges else ""
    sparser = f"\nsparser = generator.sample(16, seed=0{k})" if k_ranges else ""
    shell_k = f" --k {max(1, k_ranges[0].k // 2)}" if k_ranges else ""
    alike = "\nalike = generator.sample(16, seed=0, labels=0)  # all of class 0" if generator.classes else ""
    runtime = f"""

From the ONNX file, with onnxruntime instead of PyTorch:

```python
import sparsegen

images = sparsegen.open_sampler("{repo_id}").sample(16, seed=0)
```"""
    return f"""## Use

```
{INSTALL}
```

```python
import sparsegen

generator = sparsegen.from_pretrained("{repo_id}")
images = generator.sample(16, seed=0)  # uint8 (16, {size}, {size}, 3){sparser}{alike}
```

On the command line:

```sh
sparsegen sample {repo_id} --count 16 --seed 0{shell_k} --out samples.png
```{runtime if onnx else ""}"""


def _labels(classes: int, names: Sequence[str]) -> str:
    if not classes:
        return ""
    named = ", ".join(f"{label} {_literal(name)}" for label, name in enumerate(names))
    return f"""## Labels

A label is a class from 0 to {classes - 1}. `labels` is one label for all images or one per image; the default is drawn
from the seed. {f"The classes: {named}." if named else "The names of the classes are not recorded."}"""


def _k(k_ranges: Sequence[KRange]) -> str:
    rows = [
        f"| Γ{k_range.level} | {k_range.unit} | {k_range.k} | 1 to {k_range.limit} |" for k_range in k_ranges
    ]
    if not rows:
        return ""
    return "\n".join(
        [
            "## Sparsity (k)",
            "",
            "k non-zeros are kept at each projected level. k can be set in every call; image quality is",
            "best near the k of training.",
            "",
            "| level | in each | k of training | range |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _training(training: Mapping[str, object]) -> str:
    facts = _facts(
        {
            name: training.get(key)
            for key, name in FACTS.items()
            if key not in ONLY_IF_TRUE or training.get(key)
        }
    )
    return "\n".join(["## Training", "", *facts]) if facts else ""


def _distance(evaluation: Mapping[str, Any]) -> str:
    if not evaluation:
        return ""
    metric = evaluation["metric"]
    lines = [
        "## Measured distance",
        "",
        f"**{_literal(metric)}: {evaluation['distance']:.2f}** (lower is better)",
        "",
        METRICS.get(metric, ""),
        *([BIASED] if evaluation.get("independent") is False else []),
        "",
    ]
    others = {name: value for name, value in evaluation.get("distances", {}).items() if name != metric}
    protocol = {
        **others,
        "images drawn": evaluation.get("count"),
        "real images compared with": evaluation.get("reference_count"),
        "seed": evaluation.get("seed"),
        "share of non-zeros in each code, Γ1 first": evaluation.get("density"),
    }
    lines += _facts(protocol)
    lines += ["", "A smaller number of images raises a Fréchet distance: compare only equal numbers."]
    if quality := _facts({name: evaluation.get(key) for key, name in QUALITY.items()}):
        lines += [
            "",
            f"Measured with the features of {_plain(evaluation.get('measured_by', metric))}:",
            "",
            *quality,
        ]
    return "\n".join(lines)


def _facts(values: Mapping[str, object]) -> list[str]:
    """Returns one line per known value."""
    return [f"- {_literal(name)}: {_plain(value)}" for name, value in values.items() if value is not None]


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, int):
        return f"{value:,}"
    path = Path(str(value))
    return _literal(path.name if path.is_absolute() else str(value))  # without the folders of this machine


def _literal(text: str) -> str:
    """Returns a text as Markdown that shows it: without HTML, links, pictures and line breaks."""
    return re.sub(r"[\[\]`]", r"\\\g<0>", escape_controls(text)).replace("&", "&amp;").replace("<", "&lt;")
