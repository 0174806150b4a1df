"""Denoises one small picture with few iterations.

    python examples/restore_picture.py restored.png

Without `iterations`, the stopping rule ends the fit after a few minutes.
"""

import sys

import numpy as np
from PIL import Image

import sparsegen

out = sys.argv[1] if len(sys.argv) > 1 else "restored.png"
y, x = np.mgrid[0:64, 0:64] / 64
clean = np.stack([x, 0.5 + 0.4 * np.sin(6 * y), np.hypot(x - 0.5, y - 0.5) < 0.3], axis=2).astype(np.float32)
noise = np.random.default_rng(0).normal(0, 25 / 255, clean.shape)
noisy = (clean + noise).clip(0, 1).astype(np.float32)

result = sparsegen.restore(noisy, sigma=25, iterations=120, ensemble_size=1)


def psnr(image: np.ndarray) -> float:
    """Peak signal-to-noise ratio to the clean picture, in dB."""
    return float(-10 * np.log10(np.mean((image - clean) ** 2)))


panels = np.concatenate([noisy, result.image, clean], axis=1)
Image.fromarray((panels * 255).round().astype(np.uint8)).resize((3 * 256, 256)).save(out)
print(f"PSNR {psnr(noisy):.1f} dB before, {psnr(result.image):.1f} dB after {result.iterations} iterations")
print(f"noisy, restored and clean picture in {out}")
