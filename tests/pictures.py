"""Images to read: of noise, so that each is told from the others, as PNG, in parquet files and in folders."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def noise(seed, height=32, width=32):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed):
    return encoded(Image.fromarray(noise(seed)))


def parquet(path, cells, labels=None, **columns):
    """A file in the layout of CIFAR-10 on the Hub, without the Hub's own metadata."""
    rows = [None if cell is None else {"bytes": cell, "path": f"{row}.png"} for row, cell in enumerate(cells)]
    columns["img"] = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def folder_of(root, names):
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(seed))
    return root
