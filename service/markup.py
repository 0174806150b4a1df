"""The HTML, style and script of the page's pictures, which travel inside it: the server stores no files."""

import base64
from collections.abc import Sequence

import numpy as np

from sparsegen.service import xray
from sparsegen.zoo import images
from sparsegen.zoo.dial import Dial

SHOWN_ATOMS = 16
HINT = '<p class="hint">Click an atom to switch it off: the image without it appears here.</p>'

CSS = """
.gradio-container {max-width: 1200px !important; margin: auto !important}
.gradio-container img {image-rendering: pixelated}
.tiles {display: grid; grid-template-columns: repeat(auto-fill, minmax(72px, 1fr)); gap: 4px}
.tiles.few {grid-template-columns: repeat(4, minmax(72px, 1fr))}
.tile, .atom {all: unset; box-sizing: border-box; cursor: pointer; border-radius: 8px; overflow: hidden;
  border: 3px solid transparent; line-height: 0; transition: border-color .1s}
.tile img {width: 100%; border-radius: 4px}
.tile:hover, .atom:hover {border-color: var(--neutral-400)}
.tile:focus-visible, .atom:focus-visible {outline: 2px solid var(--color-accent); outline-offset: 1px}
.tile[aria-pressed=true], .atom[aria-pressed=true] {border-color: var(--color-accent)}
.facts {display: flex; flex-wrap: wrap; gap: 10px}
.fact {flex: 1 1 220px; padding: 8px 12px; border-radius: 8px; background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary); font-size: .9rem; line-height: 1.5}
.fact b {font-size: 1.15rem}
.figures {display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px 16px}
.figures.three {grid-template-columns: repeat(3, minmax(0, 1fr))}
.figure {margin: 0}
.figure img {width: 100%; aspect-ratio: 1; border-radius: 6px; display: block}
.figure figcaption {font-size: .85rem; line-height: 1.4; margin-top: 6px; opacity: .8}
.scale {height: 10px; border-radius: 5px; margin-top: 8px}
.ends {display: flex; justify-content: space-between; font-size: .75rem; line-height: 1.3; opacity: .8}
.atoms {display: grid; grid-template-columns: repeat(auto-fill, minmax(70px, 1fr)); gap: 4px}
.atom {padding: 5px; background: var(--background-fill-secondary); font-size: .75rem}
.atom img {width: 100%; aspect-ratio: 1; border-radius: 4px}
.atom .label {display: flex; flex-direction: column; line-height: 1.35; margin-top: 4px}
.atom .bar {display: block; height: 4px; border-radius: 2px; background: var(--color-accent); margin-top: 3px}
.atom[aria-pressed=true] img {opacity: .25}
.atom[aria-pressed=true] .label {text-decoration: line-through}
.hint {opacity: .8; font-size: .9rem; line-height: 1.5; margin: 0 0 8px}
#dice {align-self: end; height: 44px}
#atoms, #loss {padding-top: 0}
@media (max-width: 480px) {
  .tiles, .tiles.few, .atoms {grid-template-columns: repeat(4, minmax(0, 1fr))}
  .atom {padding: 3px}
  .figures.three {gap: 10px}
}
"""
PICK_JS = """element.addEventListener('click', event => {
  const tile = event.target.closest('button[data-index]');
  if (!tile) return;
  element.querySelectorAll('button').forEach(other => other.setAttribute('aria-pressed', other === tile));
  trigger('pick', {index: Number(tile.dataset.index)});
});"""
TOGGLE_JS = """element.addEventListener('click', event => {
  const atom = event.target.closest('button[data-atom]');
  if (!atom) return;
  atom.setAttribute('aria-pressed', atom.getAttribute('aria-pressed') !== 'true');
  const pressed = [...element.querySelectorAll('button[aria-pressed=true]')];
  trigger('toggle', {off: pressed.map(other => Number(other.dataset.atom))});
});"""


def picture(pixels: np.ndarray, alt: str) -> str:
    """An image, uint8 (H, W, 3), as a PNG inside the HTML; enlarged by the browser without smoothing."""
    return f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(images.png(pixels)).decode()}">'


def tiles(pixels: np.ndarray, chosen: int) -> str:
    """Images, uint8 (B, H, W, 3), as buttons of which one is pressed."""
    buttons = [
        f'<button class="tile" data-index="{index}" aria-pressed="{str(index == chosen).lower()}">'
        f"{picture(image, f'Image {index}')}</button>"
        for index, image in enumerate(pixels)
    ]
    return f'<div class="tiles{" few" * (len(pixels) <= 16)}">{"".join(buttons)}</div>'


def facts(codes: Sequence[np.ndarray], dials: Sequence[Dial], k: Sequence[int]) -> str:
    """How sparse the codes of some images are.  Shape: each Γ (B, C, H, W)."""
    allowed = {dial.level: (dial, value) for dial, value in zip(dials, k, strict=True)}
    cards = []
    for level, code in enumerate(codes, 1):
        needles = np.count_nonzero(code, axis=1)
        limit = "not limited in this model"
        if level in allowed:
            dial, value = allowed[level]
            limit = f"the dial allows {value:,} of {dial.limit:,} in each {dial.unit}"
        cards.append(
            f'<div class="fact"><b>Γ{level}: density {needles.mean() / code.shape[1]:.3f}</b><br>'
            f"{needles.mean():.1f} non-zeros in a needle of {code.shape[1]} on average, "
            f"{needles.max()} at most<br>{limit}"
            "</div>"
        )
    return f'<div class="facts">{"".join(cards)}</div>'


def inside(pixels: np.ndarray, codes: Sequence[np.ndarray], dials: Sequence[Dial], k: Sequence[int]) -> str:
    """One image beside the needle density of its codes.  Shape: uint8 (H, W, 3); each Γ (C, H, W)."""
    tops = {dial.level: value for dial, value in zip(dials, k, strict=True) if dial.unit == "needle"}
    figures = [_figure(picture(pixels, "The image"), "<b>The image</b>, 32 × 32 pixels")]
    for level, code in enumerate(codes, 1):
        needles = xray.counts(code)
        top = tops.get(level) or max(1, int(needles.max()))
        same = needles.min() == needles.max()
        spread = (
            f"{needles.max()} in every one"
            if same
            else f"{needles.min()} to {needles.max()}, {needles.mean():.1f} on average"
        )
        figures.append(
            _figure(
                picture(xray.heat(needles, top), f"Non-zeros in each needle of Γ{level}")
                + _scale("0", str(top)),
                f"<b>Density of Γ{level}</b>: the non-zeros in each of its {needles.size} needles, {spread}",
            )
        )
    strength = xray.strengths(codes[0])
    figures.append(
        _figure(
            picture(xray.heat(strength, strength.max() or 1), "Strength of each needle of Γ1")
            + _scale("0", "strongest"),
            "<b>Strength of Γ1</b>: the length of each needle, where the code says most",
        )
    )
    return f'<div class="figures">{"".join(figures)}</div>'


def atoms(code: np.ndarray, dictionary: np.ndarray) -> str:
    """Buttons that switch off the most used atoms of D1.  Shape: Γ1 (C, H, W), dictionary (C, 3, h, w)."""
    shares, pictures = xray.shares(code, dictionary), images.atom_pictures(dictionary)
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
        f'<p class="hint">The image uses {used} of {len(dictionary)} atoms; the {len(order)} shown hold '
        f"{shares[order].sum():.0%} of its energy. Each is {height} × {width} pixels, on gray where it adds nothing, "
        "with a contrast of its own.</p>"
        f'<div class="atoms">{"".join(buttons)}</div>'
    )


def loss(before: np.ndarray, after: np.ndarray, off: Sequence[int]) -> str:
    """An image with and without some atoms, and the difference.  Shape: uint8 (H, W, 3) twice."""
    lost, factor = xray.difference(before, after)
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


def _figure(content: str, caption: str) -> str:
    return f'<figure class="figure">{content}<figcaption>{caption}</figcaption></figure>'


def _scale(low: str, high: str) -> str:
    colors = ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in xray.INFERNO)
    return (
        f'<div class="scale" style="background: linear-gradient(to right, {colors})"></div>'
        f'<div class="ends"><span>{low}</span><span>{high}</span></div>'
    )
