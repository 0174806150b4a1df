"""Saves an image, the image without its strongest atom, and their difference, side by side.

python examples/edit_code.py edited.png
"""

import sys

import numpy as np
import torch
from PIL import Image

import sparsegen

out = sys.argv[1] if len(sys.argv) > 1 else "edited.png"
generator = sparsegen.from_pretrained("dcgan.ml")
z = torch.randn(1, generator.z_dim, generator=torch.Generator().manual_seed(3))
image, (gamma_1, _) = generator(z)  # image in [-1, 1], (1, 3, 32, 32); Γ1 (1, 128, 16, 16)

strength = gamma_1[0].abs().sum((1, 2))  # (128,)
strongest = int(strength.argmax())
edited = gamma_1.clone()
edited[:, strongest] = 0
without = generator.synthesize(edited)

panels = torch.cat([image, without, image - without], dim=3)[0]  # (3, 32, 96)
pixels = ((panels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
Image.fromarray(np.repeat(np.repeat(pixels, 6, axis=0), 6, axis=1)).save(out)
share = float(strength[strongest] / strength.sum())
print(
    f"atom {strongest} has {share:.1%} of the magnitude of Γ1; image, image without it, and difference in {out}"
)
