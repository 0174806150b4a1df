"""Draws the example pictures of the Restore tab: python -m benchmarks.restore_examples

The pictures are drawn by the code below with fixed seeds, so they have the license of the package.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FOLDER = Path(__file__).resolve().parent.parent / "service" / "examples"
SCALE = 4  # supersampling: drawn larger by this factor, then averaged
Pixels = np.ndarray  # float (H, W, 3) in [0, 1]


def main() -> None:
    random = np.random.default_rng(7)
    still = still_life(176, 176)
    save("noisy.jpg", still + random.normal(0, 25 / 255, still.shape))
    night, photons = harbor(176, 176), 28
    save("dark.jpg", random.poisson(night * photons) / photons)
    valley, holes = hills(208, 208), scratches(208, 208)
    save("damaged.jpg", np.where(holes[..., None], 1, valley))
    wider = (
        Image.fromarray(holes).convert("L").filter(ImageFilter.MaxFilter(3))
    )  # JPEG blurs the edges of holes
    wider.save(FOLDER / "damaged-mask.png", optimize=True)
    save("small.png", butterfly(80, 80))


def save(name: str, pixels: Pixels) -> None:
    image = Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    options = {"quality": 90, "subsampling": 0} if name.endswith(".jpg") else {"optimize": True}
    image.save(FOLDER / name, **options)
    print(f"{name}: {(FOLDER / name).stat().st_size / 1024:.1f} KiB")


def still_life(height: int, width: int) -> Pixels:
    """Three balls on a wooden table in front of a striped wall, and a card with text."""
    y, x = grid(height, width)
    horizon = 0.5
    stripes = 0.5 + 0.5 * np.sign(np.sin(x * 44))
    wall = mix((0.30, 0.42, 0.47), (0.38, 0.52, 0.56), stripes) * (1.1 - 0.55 * x)[..., None]
    depth = np.clip(y - horizon, 1e-3, None)
    grain = np.sin(40 * np.log(depth + 0.12) + 3 * np.sin(9 * x / (depth + 0.35)))
    wood = mix((0.56, 0.36, 0.20), (0.68, 0.46, 0.27), 0.5 + 0.5 * grain)
    scene = np.where((y > horizon)[..., None], wood, wall)
    card = Image.new("RGB", (width * SCALE, height * SCALE))
    draw = ImageDraw.Draw(card)
    box = [
        round(side * size * SCALE)
        for side, size in zip((0.56, 0.10, 0.93, 0.42), (width, height) * 2, strict=True)
    ]
    draw.rectangle(box, fill=(238, 230, 208), outline=(90, 66, 48), width=round(0.016 * width * SCALE))
    draw.text(
        ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), "sparse\ncode", (70, 50, 44), font(0.085 * width * SCALE),
        anchor="mm", align="center",
    )  # fmt: skip
    card_pixels = np.asarray(card) / 255
    scene = np.where(card_pixels.any(2, keepdims=True), card_pixels * 0.92, scene)
    for cx, cy, radius, color in (
        (0.60, 0.63, 0.15, (0.86, 0.62, 0.13)),
        (0.29, 0.62, 0.21, (0.76, 0.16, 0.14)),
        (0.47, 0.82, 0.10, (0.16, 0.45, 0.30)),
    ):
        scene = ball(scene, y, x, (cy, cx), radius, color)
    return smaller(scene)


def ball(scene: Pixels, y: Pixels, x: Pixels, center: tuple, radius: float, color: tuple) -> Pixels:
    """Adds a ball with its shadow, lit from the upper left."""
    cy, cx = center
    shadow = np.hypot((x - cx - 0.5 * radius) / (1.45 * radius), (y - cy - 0.86 * radius) / (0.42 * radius))
    scene = scene * (1 - 0.6 * np.clip(1.25 - shadow, 0, 1))[..., None]
    v, u = (y - cy) / radius, (x - cx) / radius
    inside = u**2 + v**2 < 1
    normal = np.stack([u, v, np.sqrt(np.clip(1 - u**2 - v**2, 0, 1))], -1)
    light = np.array([-0.55, -0.65, 0.53])
    diffuse = np.clip(normal @ light, 0, 1)
    shine = np.clip((2 * (normal @ light)[..., None] * normal - light)[..., 2], 0, 1) ** 40
    lit = np.array(color) * (0.22 + 0.9 * diffuse)[..., None] + 0.7 * shine[..., None]
    return np.where(inside[..., None], lit, scene)


def harbor(height: int, width: int) -> Pixels:
    """A town at night, with windows and moon reflected by the water."""
    random = np.random.default_rng(3)
    y, x = grid(height, width)
    shore = 0.62
    sky = mix((0.03, 0.05, 0.14), (0.19, 0.12, 0.24), np.clip(y / shore, 0, 1) ** 1.6)
    moon = np.hypot(x - 0.76, y - 0.2)
    sky += np.exp(-((moon / 0.16) ** 2))[..., None] * np.array((0.20, 0.19, 0.17))
    scene = np.where((moon < 0.075)[..., None], np.array((0.96, 0.93, 0.80)), sky)
    left = 0.0
    while left < 1:
        wide, top = random.uniform(0.09, 0.17), shore - random.uniform(0.13, 0.37)
        house = (x >= left) & (x < left + wide) & (y > top) & (y < shore)
        scene = np.where(house[..., None], np.array((0.05, 0.05, 0.09)) * random.uniform(0.8, 1.8), scene)
        for row in np.arange(top + 0.025, shore - 0.045, 0.05):
            for column in np.arange(left + 0.018, left + wide - 0.026, 0.036):
                if random.random() < 0.55:
                    window = (abs(x - column - 0.009) < 0.0095) & (abs(y - row - 0.014) < 0.014)
                    glow = np.array((1.0, 0.76, 0.36)) * random.uniform(0.55, 1)
                    scene = np.where(window[..., None], glow, scene)
        left += wide + random.choice([0, 0.012])
    rows = np.arange(height * SCALE)
    place = rows / (height * SCALE)
    below = place > shore
    mirrored = np.where(below, 2 * shore - place, place)
    wave = np.where(
        below, 0.010 * np.sin(260 * np.clip(place - shore, 0, 1) ** 0.75) * (1 + 3 * (place - shore)), 0
    )
    source = np.clip(np.rint(mirrored * height * SCALE), 0, height * SCALE - 1).astype(int)
    columns = np.arange(width * SCALE)[None] + np.rint(wave * width * SCALE).astype(int)[:, None]
    scene = scene[source[:, None], np.clip(columns, 0, width * SCALE - 1)]
    water = np.where(below[:, None, None], np.array((0.55, 0.62, 0.78)), 1)
    return smaller(scene * water + np.where(below[:, None, None], np.array((0.01, 0.02, 0.04)), 0))


def hills(height: int, width: int) -> Pixels:
    """Hills in the evening, the nearest with a fence and trees."""
    random = np.random.default_rng(11)
    y, x = grid(height, width)
    scene = mix((0.98, 0.72, 0.42), (0.38, 0.56, 0.78), np.clip(1 - y / 0.55, 0, 1))
    sun = np.hypot(x - 0.3, y - 0.33)
    scene = np.where((sun < 0.085)[..., None], np.array((1.0, 0.92, 0.66)), scene)
    for base, height_of, color in (
        (0.45, 0.07, (0.55, 0.50, 0.62)), (0.56, 0.08, (0.40, 0.46, 0.50)), (0.70, 0.06, (0.30, 0.46, 0.33))
    ):  # fmt: skip
        phase = random.uniform(0, 6, 3)
        ridge = base + height_of * (
            0.6 * np.sin(5 * x + phase[0])
            + 0.3 * np.sin(11 * x + phase[1])
            + 0.12 * np.sin(27 * x + phase[2])
        )
        furrows = 0.06 * np.sin(260 * (y - ridge) ** 2 + 14 * x + 50 * (y - ridge)) * (base > 0.6)
        scene = np.where((y > ridge)[..., None], np.array(color) * (1 + furrows)[..., None], scene)
    for cx, cy, size in ((0.80, 0.62, 0.16), (0.64, 0.60, 0.10), (0.12, 0.68, 0.12)):
        for level in range(4):
            top, spread = cy - size + level * 0.36 * size, (0.16 + 0.10 * level) * size / 0.5
            branch = (y > top) & (y < top + 0.62 * size) & (abs(x - cx) < (y - top) * spread * 2.2)
            shade = np.clip(1.1 - (x - cx) / size, 0.5, 1.4)[..., None]
            scene = np.where(branch[..., None], np.array((0.12, 0.27, 0.20)) * shade, scene)
    for post in np.arange(0.05, 1, 0.13):
        plank = (abs(x - post) < 0.012) & (y > 0.78) & (y < 0.95)
        scene = np.where(plank[..., None], np.array((0.42, 0.29, 0.20)), scene)
    for rail in (0.82, 0.89):
        scene = np.where((abs(y - rail) < 0.010)[..., None], np.array((0.52, 0.37, 0.25)), scene)
    return smaller(scene)


def scratches(height: int, width: int) -> Pixels:
    """Holes: lines, spots and a word.  Shape: bool (height, width)."""
    image = Image.new("L", (width * SCALE, height * SCALE))
    draw = ImageDraw.Draw(image)
    along = np.linspace(0, 1, 200)
    for offset, thick in ((0.22, 5), (0.47, 4), (0.72, 5)):
        line = [
            (
                width * SCALE * t,
                height * SCALE * (offset + 0.10 * np.sin(9 * t + 20 * offset) + 0.1 * t - 0.05),
            )
            for t in along
        ]
        draw.line(line, 255, thick * SCALE, joint="curve")
    for cx, cy, radius in ((0.52, 0.3, 0.035), (0.88, 0.30, 0.045), (0.35, 0.83, 0.04)):
        draw.ellipse(
            [(cx - radius) * width * SCALE, (cy - radius) * height * SCALE, (cx + radius) * width * SCALE,
             (cy + radius) * height * SCALE], 255,
        )  # fmt: skip
    draw.text(
        (0.5 * width * SCALE, 0.1 * height * SCALE), "greetings", 255, font(0.13 * width * SCALE), anchor="mm"
    )
    return np.asarray(image.resize((width, height), Image.Resampling.BOX)) > 60


def butterfly(height: int, width: int) -> Pixels:
    """A butterfly on leaves."""
    y, x = grid(height, width)
    leaves = 0.5 + 0.5 * np.sin(16 * (x + 0.6 * y) + 2.5 * np.sin(7 * y))
    scene = mix((0.18, 0.38, 0.22), (0.42, 0.60, 0.30), leaves)
    for side in (-1, 1):
        u = side * (x - 0.5)
        for cx, cy, across, up, tilt, color in (
            (0.22, 0.36, 0.235, 0.155, -0.75, (0.93, 0.50, 0.12)), (0.16, 0.66, 0.17, 0.135, 0.75, (0.90, 0.38, 0.14))
        ):  # fmt: skip
            a, b = u - cx, y - cy
            p, q = a * np.cos(tilt) + b * np.sin(tilt), b * np.cos(tilt) - a * np.sin(tilt)
            far = np.hypot(p / across, q / up)
            veins = abs(np.sin(7 * np.arctan2(q, p + 1.1 * across)))
            wing = np.array(color) * (0.8 + 0.25 * (1 - far))[..., None]
            wing = np.where(((veins < 0.11) | (far > 0.80))[..., None], np.array((0.10, 0.06, 0.05)), wing)
            dots = (far > 0.83) & (far < 0.95) & (np.sin(26 * np.arctan2(q / up, p / across)) > 0.45)
            wing = np.where(dots[..., None], np.array((0.98, 0.95, 0.88)), wing)
            scene = np.where((far < 1)[..., None] & (u > 0)[..., None], wing, scene)
        antenna = (abs(u - 0.10 * np.sqrt(np.clip((0.30 - y) / 0.2, 0, 1))) < 0.008) & (y > 0.1) & (y < 0.3)
        scene = np.where(antenna[..., None], np.array((0.08, 0.05, 0.05)), scene)
    body = np.hypot((x - 0.5) / 0.032, (y - 0.52) / 0.25) < 1
    return smaller(np.where(body[..., None], np.array((0.12, 0.08, 0.07)), scene))


def grid(height: int, width: int) -> tuple[Pixels, Pixels]:
    """The centers y, x of the supersampled pixels, from 0 to 1."""
    return np.meshgrid(
        (np.arange(height * SCALE) + 0.5) / (height * SCALE),
        (np.arange(width * SCALE) + 0.5) / (width * SCALE),
        indexing="ij",
    )


def mix(low: tuple, high: tuple, share: Pixels) -> Pixels:
    return np.array(low) + share[..., None] * (np.array(high) - np.array(low))


def smaller(scene: Pixels) -> Pixels:
    height, width, _ = scene.shape
    blocks = np.clip(scene, 0, 1).reshape(height // SCALE, SCALE, width // SCALE, SCALE, 3)
    return blocks.mean((1, 3))


def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


if __name__ == "__main__":
    main()
