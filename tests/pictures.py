"""Images of noise, all different, as PNG, in parquet files and in folders."""

import io
import struct
import zlib

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
    """A file in the layout of CIFAR-10 on the Hub, without the metadata of the Hub."""
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


def tiff_of_one_tile(side, tile=20000, samples=4):
    """A TIFF of a few hundred bytes with `side` pixels per side; a decoder fills a whole tile with zeros."""
    data = zlib.compress(bytes(1_000_000))
    tags = [(256, side), (257, side), (258, None), (259, 8), (262, 2), (277, samples), (284, 1)]
    tags += [(322, tile), (323, tile), (324, None), (325, len(data)), (338, 2)]
    end = 8 + 2 + 12 * len(tags) + 4
    bits = struct.pack(f"<{samples}H", *[8] * samples)
    entries = b""
    for tag, value in tags:
        value = {258: end, 324: end + len(bits)}.get(tag, value)
        kind, count = (4, 1) if tag >= 322 and tag != 338 else (3, samples if tag == 258 else 1)
        entries += struct.pack("<HHII", tag, kind, count, value)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + bits + data


def tiff_of_tiles(height, width, tile):
    """A TIFF of floats, all zero, in compressed tiles that may be much larger than the picture."""
    import imagecodecs
    import tifffile

    segment = imagecodecs.zstd_encode(bytes(8 * tile[0] * tile[1]))
    count = -(-height // tile[0]) * -(-width // tile[1])
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(
            (segment for _ in range(count)),
            shape=(height, width),
            dtype="float64",
            tile=tile,
            compression="zstd",
            photometric="minisblack",
            metadata=None,
        )
    return buffer.getvalue()
