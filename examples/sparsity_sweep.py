"""Saves samples of one seed at several k as one picture, with one row per k.

python examples/sparsity_sweep.py sweep.png
"""

import sys

import numpy as np
from PIL import Image

import sparsegen

out = sys.argv[1] if len(sys.argv) > 1 else "sweep.png"
generator = sparsegen.from_pretrained("dcgan.ml")  # trained with k = 32 of 128 atoms
rows = []
for k in (2, 4, 8, 16, 32, 64):
    pixels = generator.sample(12, seed=7, k=k)  # uint8 (12, 32, 32, 3)
    rows.append(np.concatenate(pixels, axis=1))  # (32, 12 * 32, 3)
sweep = Image.fromarray(np.concatenate(rows))
sweep.resize((2 * sweep.width, 2 * sweep.height), Image.Resampling.NEAREST).save(out)
print(f"{len(rows)} rows in {out}, from k = 2 (top) to k = 64 (bottom)")
