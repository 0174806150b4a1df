"""The HTML of the page, which contains most of its pictures."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from sparsegen.pictures import images
from sparsegen.service.jobs.store import LIVE, Status
from sparsegen.service.models import Model
from sparsegen.service.page import catalog, inspector, words
from sparsegen.zoo.k_range import KRange

SHOWN_ATOMS = 16
# The 5th and 95th percentile of the times of the 168 runs of table 3 with the fast preset, over the expected ones.
SPREAD = 0.75, 1.5
HINT = '<p class="hint">Select an atom to switch it off: the image without it appears here.</p>'


def login(note: str) -> str:
    """The login page; it sends the token to its own address."""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>sparsegen</title>
<style>
body {{font: 16px/1.5 system-ui, sans-serif; display: grid; place-items: center; min-height: 90vh; margin: 1rem}}
form {{display: grid; gap: .75rem; width: min(100%, 22rem)}}
input, button {{font: inherit; padding: .5rem .75rem; border: 1px solid #8aa; border-radius: 8px}}
button {{background: #0d9488; color: white; border: 0; cursor: pointer}}
p {{margin: 0}}
</style>
<form method="post"><h1>sparsegen</h1>
<label for="token">This server requires a token. Its operator has it.</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Log in</button><p role="alert">{escape(note)}</p></form></html>
"""


def picture(pixels: np.ndarray, alt: str) -> str:
    """An image, uint8 (H, W, 3), as a PNG inside the HTML; enlarged by the browser without smoothing."""
    return f'<img alt="{escape(alt)}" src="{_address(pixels)}">'


def _address(pixels: np.ndarray) -> str:
    """A PNG as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(images.png(pixels)).decode()}"


def banner(pages: Mapping[str, str]) -> str:
    """The heading of the page, with links to `pages`, addresses by title, and to the pages of the project."""
    links = "".join(
        f'<a href="{escape(address)}" target="_blank" rel="noopener">{escape(title)}</a>'
        for title, address in (words.LINKS | dict(pages)).items()
    )
    return (
        f'<div class="banner"><h1>sparsegen</h1><p>{escape(words.INTRODUCTION)}</p>'
        f'<nav aria-label="Project">{links}</nav></div>'
    )


def terms() -> str:
    """The explanations of terms."""
    entries = (f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in words.TERMS.items())
    return f'<dl class="terms">{"".join(entries)}</dl>'


def head(model: Model) -> str:
    """The name of a model, its description and its distance."""
    measured = catalog.distance(model)
    facts = f" <b>{escape(measured[:1].upper() + measured[1:])}.</b>" if measured else ""
    files = words.MODEL_FILES.format(model.name)
    bundled = f' <a href="{files}" target="_blank" rel="noopener">Files</a>' if model.bundled else ""
    return (
        f'<div class="head"><h2>{escape(model.name)}</h2><p>{escape(catalog.description(model))}.{facts}</p>'
        f'<p class="links"><button data-to="#models">All models</button><button data-to="#card">Model card</button>'
        f"{bundled}</p></div>"
    )


def sides(contents: Sequence[tuple[str, str]]) -> str:
    """One content, or two with headings side by side."""
    if len(contents) == 1:
        return contents[0][1]
    parts = (
        f'<div role="group" aria-label="{escape(title)}"><p class="side">{escape(title)}</p>{content}</div>'
        for title, content in contents
    )
    return f'<div class="sides">{"".join(parts)}</div>'


def share(fragment: str, files: Sequence[str]) -> str:
    """Buttons that copy the link to the shown settings, and save the grid of each side as a file."""
    names = ["Save grid (PNG)"] if len(files) == 1 else ["Save left grid (PNG)", "Save right grid (PNG)"]
    grids = "".join(
        f'<button data-grid="{place}" data-file="{escape(file)}.png">{name}</button>'
        for place, (name, file) in enumerate(zip(names, files, strict=True))
    )
    return (
        f'<div class="share" data-link="{escape(fragment)}"><button data-copy>Copy link</button>{grids}'
        '<span role="status"></span></div>'
    )


def tiles(pixels: np.ndarray, chosen: int, classes: Sequence[str]) -> str:
    """Images, uint8 (B, H, W, 3), as buttons with their classes; the chosen one is pressed."""
    buttons = [
        f'<button class="tile" data-index="{index}" aria-pressed="{str(index == chosen).lower()}" '
        f'title="{escape(called)}">{picture(image, f"Image {index} {called}".rstrip())}</button>'
        for index, (image, called) in enumerate(zip(pixels, classes, strict=True))
    ]
    return f'<div class="tiles{" few" * (len(pixels) <= 16)}">{"".join(buttons)}</div>'


def facts(codes: Sequence[np.ndarray], k_ranges: Sequence[KRange], k: Sequence[int]) -> str:
    """The density of the codes of some images.  Shape: each Γ (B, C, H, W)."""
    allowed = {k_range.level: (k_range, value) for k_range, value in zip(k_ranges, k, strict=True)}
    cards = []
    for level, code in enumerate(codes, 1):
        needles = np.count_nonzero(code, axis=1)
        limit = "not limited in this model"
        if level in allowed:
            k_range, value = allowed[level]
            limit = f"k allows {value:,} of {k_range.limit:,} per {k_range.unit}"
        cards.append(
            f'<div class="fact"><b>Γ{level}: density {needles.mean() / code.shape[1]:.3f}</b><br>'
            f"{needles.mean():.1f} of {code.shape[1]} entries per needle are non-zero on average, "
            f"{needles.max()} at most<br>{limit}"
            "</div>"
        )
    return f'<div class="facts">{"".join(cards)}</div>'


def inside(
    pixels: np.ndarray,
    codes: Sequence[np.ndarray],
    k_ranges: Sequence[KRange],
    k: Sequence[int],
    called: str,
    file: str,
) -> str:
    """An image with its class and a link that saves it as `file`, and the density of its codes per needle.

    Shape: uint8 (H, W, 3); each Γ (C, H, W).
    """
    tops = {
        k_range.level: value for k_range, value in zip(k_ranges, k, strict=True) if k_range.unit == "needle"
    }
    caption = ", ".join(
        filter(None, ["<b>The image</b>", escape(called), f"{pixels.shape[1]} × {pixels.shape[0]} pixels"])
    )
    shown = picture(pixels, f"The image {called}".rstrip())
    caption += (
        f'<br><a class="save" href="{_address(pixels)}" download="{escape(file)}.png">Save image (PNG)</a>'
    )
    figures = [_figure(shown, caption)]
    for level, code in enumerate(codes, 1):
        needles = inspector.counts(code)
        top = tops.get(level) or max(1, int(needles.max()))
        same = needles.min() == needles.max()
        spread = (
            f"{needles.max()} in all of them"
            if same
            else f"{needles.min()} to {needles.max()}, {needles.mean():.1f} on average"
        )
        figures.append(
            _figure(
                picture(inspector.heat(needles, top), f"Non-zeros per needle of Γ{level}")
                + _scale("0", str(top)),
                f"<b>Density of Γ{level}</b>: non-zeros per needle, {needles.size} needles: {spread}",
            )
        )
    strength = inspector.strengths(codes[0])
    figures.append(
        _figure(
            picture(inspector.heat(strength, strength.max() or 1), "Strength of each needle of Γ1")
            + _scale("0", "strongest"),
            "<b>Strength of Γ1</b>: the Euclidean norm of each needle",
        )
    )
    return f'<div class="figures">{"".join(figures)}</div>'


def atoms(code: np.ndarray, dictionary: np.ndarray) -> str:
    """Buttons that switch off the most used atoms of D1.  Shape: Γ1 (C, H, W), dictionary (C, 3, h, w)."""
    shares, pictures = inspector.shares(code, dictionary), images.atom_pictures(dictionary)
    order = [int(atom) for atom in np.argsort(-shares, kind="stable")[:SHOWN_ATOMS] if shares[atom] > 0]
    used, height, width = int((shares > 0).sum()), *dictionary.shape[2:]
    buttons = [
        f'<button class="atom" data-atom="{atom}" aria-pressed="false">'
        f"{picture(pictures[atom], f'Atom {atom}')}"
        f'<span class="label"><span>#{atom}</span><span>{shares[atom]:.1%}</span></span>'
        f'<span class="bar" style="width:{shares[atom] / shares.max():.0%}"></span></button>'
        for atom in order
    ]
    return (
        f'<p class="hint">The image uses {used} of {len(dictionary)} atoms; the {len(order)} shown have '
        f"{shares[order].sum():.0%} of its energy. Each has {height} × {width} pixels; gray is zero, and the contrast "
        "is scaled per atom.</p>"
        f'<div class="atoms">{"".join(buttons)}</div>'
    )


def loss(before: np.ndarray, after: np.ndarray, off: Sequence[int]) -> str:
    """An image with and without some atoms, and the difference.  Shape: uint8 (H, W, 3) twice."""
    lost, factor = inspector.difference(before, after)
    change = np.abs(before.astype(int) - after)
    names = ", ".join(f"#{atom}" for atom in off)
    figures = [
        _figure(picture(before, "Before"), "<b>Before</b>, with all atoms"),
        _figure(picture(after, "After"), f"<b>After</b>, without {names}"),
        _figure(
            picture(lost, "Difference"),
            f"<b>Difference</b>, contrast × {factor:.1f}: pixels change by {change.mean():.1f} of 255 on "
            f"average, {change.max()} at most",
        ),
    ]
    return f'<div class="figures three">{"".join(figures)}</div>'


def encoded(picture_pixels: np.ndarray, pixels: np.ndarray, psnr: float, codes: Sequence[np.ndarray]) -> str:
    """A picture, the image of its code, and the difference.  Shape: uint8 (H, W, 3) twice; each Γ (C, H, W)."""
    lost, factor = inspector.difference(picture_pixels, pixels)
    nonzeros = ", ".join(
        f"{np.count_nonzero(code):,} of {code.size:,} in Γ{level}" for level, code in enumerate(codes, 1)
    )
    near = "equal" if np.isinf(psnr) else f"{psnr:.1f} dB (PSNR)"
    figures = [
        _figure(picture(picture_pixels, "Your picture"), "<b>Your picture</b>, the center square"),
        _figure(
            picture(pixels, "The image of its code"), f"<b>From its code</b>: {near}; non-zeros: {nonzeros}"
        ),
        _figure(picture(lost, "Difference"), f"<b>Difference</b>, contrast × {factor:.1f}"),
    ]
    return f'<div class="figures three">{"".join(figures)}</div>'


def _figure(content: str, caption: str) -> str:
    return f'<figure class="figure">{content}<figcaption>{caption}</figcaption></figure>'


def _scale(low: str, high: str) -> str:
    colors = ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in inspector.INFERNO)
    return (
        f'<div class="scale" style="background: linear-gradient(to right, {colors})"></div>'
        f'<div class="ends"><span>{low}</span><span>{high}</span></div>'
    )


def examples(pictures: Sequence[tuple[str, np.ndarray]]) -> str:
    """Buttons with captions and pictures.  Shape: float (H, W, 3) in [0, 1]."""
    buttons = [
        f'<button class="tile" data-index="{index}" aria-pressed="false">'
        f"{picture(np.rint(pixels * 255).astype(np.uint8), '')}<span>{escape(caption)}</span></button>"
        for index, (caption, pixels) in enumerate(pictures)
    ]
    hint = '<p class="hint">Pick an example, or drop a picture of your own.</p>'
    return f'{hint}<div class="examples">{"".join(buttons)}</div>'


def notice(sentence: str) -> str:
    return f'<div class="fact notice" role="status">{escape(sentence)}</div>'


def progress(status: Status) -> str:
    """The progress of a restoration, from its status."""
    name, job = status["status"], escape(status["id"])
    heading = {
        "waiting": f"Waiting, position {status['position']} in the queue",
        "running": "Restoring",
        "done": "Done",
        "failed": f"Failed: {status['error']}",
        "canceled": "Canceled",
    }[name]
    left = "" if status["seconds_left"] is None else f"about {duration(status['seconds_left'])} left"
    fraction = 1 if name == "done" else status["fraction"] or 0
    parts = [
        f'<div class="state {name}" role="status"><b>{escape(heading)}</b><span>{left}</span></div>',
        f'<div class="meter {name}" role="progressbar" aria-label="Progress" aria-valuenow="{100 * fraction:.0f}">'
        f'<i style="width:{fraction:.1%}"></i></div>',
    ]
    parts += [_numbers(status), curve(status["history"], status["best_iteration"])]
    parts += [f'<p class="hint">{escape(note[:1].upper() + note[1:])}.</p>' for note in status["notes"]]
    if name in LIVE:
        parts.append(
            f'<p class="hint">The restoration continues without the page. <a href="#restore={job}">This address</a> '
            "shows it until a day after its end.</p>"
        )
    return f'<div class="progress">{"".join(parts)}</div>'


def _numbers(status: Status) -> str:
    known = []
    if status["iteration"] is not None:
        known.append(("Iterations", f"{status['iteration']:,}"))
    if status["seconds"] is not None:
        known.append(("Time", duration(status["seconds"])))
    if status["best_iteration"] is not None:
        known.append(("Best at", f"{status['best_iteration']:,}"))
    if status["stopped_because"]:
        known.append(("Stopped because", escape(status["stopped_because"])))
    return f'<dl class="numbers">{"".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in known)}</dl>'


def expected(seconds: float, ahead: int, wait: float, early: bool) -> str:
    """The expected time of a restoration before it starts.

    Args:
        ahead: The number of jobs before it, which take `wait` seconds.
        early: The number of iterations is not predictable: `seconds` is for all of them.
    """
    sentences = [f"Expected time: at most about <b>{roughly(seconds)}</b>, often less."]
    if not early:
        low, high = (roughly(factor * seconds) for factor in SPREAD)
        sentences = [f"Expected time: about <b>{roughly(seconds)}</b> ({low} to {high})."]
    if ahead:
        jobs = "1 restoration is" if ahead == 1 else f"{ahead} restorations are"
        sentences.append(f"{jobs} ahead, about {roughly(wait)}.")
    return f'<p class="hint" role="status">{" ".join(sentences)}</p>'


def roughly(seconds: float) -> str:
    """Estimated seconds for people, in steps of 5 or 10 seconds, minutes or tenths of an hour."""
    if seconds < 95:
        step = 5 if seconds < 27 else 10
        return f"{max(1, round(seconds / step)) * step} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def duration(seconds: float) -> str:
    """Seconds in minutes and hours, for people."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def curve(history: Sequence[Sequence[float]], best: int | None) -> str:
    """The stopping statistic by iteration as SVG, with a mark at the best iteration; empty below two points.

    The scale is logarithmic if all values are positive, because the first are many times the last.
    """
    if len(history) < 2:
        return ""
    iterations, values = (np.array(column, float) for column in zip(*history, strict=True))
    logarithmic = bool((values > 0).all())
    heights = np.log(values) if logarithmic else values
    low, high, first, last = heights.min(), heights.max(), iterations[0], iterations[-1]
    x = 100 * (iterations - first) / (last - first)
    y = 96 - 92 * (heights - low) / ((high - low) or 1)
    points = " ".join(f"{a:.2f},{b:.2f}" for a, b in zip(x, y, strict=True))
    mark = ""
    if best is not None:
        at = 100 * (min(max(best, first), last) - first) / (last - first)
        side = "end" if at > 60 else "start"
        mark = (
            f'<i class="plumb {side}" style="left:{at:.2f}%"><span>best, {best:,}</span></i>'
            f'<i class="best" style="left:{at:.2f}%;top:{np.interp(at, x, y):.2f}%"></i>'
        )
    return (
        '<figure class="figure"><div class="curve">'
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="Stop statistic by iteration">'
        f'<polyline points="{points}" fill="none" vector-effect="non-scaling-stroke"/></svg>{mark}</div>'
        f'<div class="ends"><span>iteration {first:,.0f}</span><span>{last:,.0f}</span></div>'
        f"<figcaption><b>Stopping statistic</b>: an estimate of the error without the clean picture"
        f"{', logarithmic' * logarithmic}; lower is better</figcaption></figure>"
    )
