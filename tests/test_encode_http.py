"""POST /encode of a real server in whose process torch cannot be imported."""

import asyncio
import base64
import io
import shutil
import warnings
from pathlib import Path

import httpx
import numpy as np
import pytest
from answers import sentence
from PIL import Image
from server import Server, running_server, small_models  # noqa: F401 (fixtures)

from sparsegen.export.runtime import open_sampler
from sparsegen.pictures.squares import decode
from sparsegen.service.encoding import EncodeOrder
from sparsegen.service.http.batching import Overloaded
from sparsegen.service.http.encoding import WAITING, Searches
from sparsegen.service.models import open_models

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of pathspec, which bentoml imports
    from bentoml import SyncHTTPClient

ML, L0 = "dcgan-8.ml", "dcgan-8.l0"


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A smooth picture that is wider than high."""
    y, x = np.mgrid[:60, :91] / 20
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1)
    return np.rint(127.5 + 100 * waves).astype(np.uint8)


def encode(server: Server, files: dict[str, bytes], **values: object) -> tuple[int, dict[str, str], bytes]:
    given = {name: str(value) for name, value in values.items()}
    answer = httpx.post(f"{server.url}/encode", files=files, data=given, timeout=60)
    return answer.status_code, dict(answer.headers), answer.content


def opened(content: str | bytes) -> np.ndarray:
    content = base64.b64decode(content) if isinstance(content, str) else content
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize(
    ("model", "k", "values"), [(ML, "3,2", [3, 2]), (L0, None, None), ("sagan-8.ml", "4", 4)]
)
def test_the_code_is_that_of_the_sampler(
    server: Server, models: Path, photo: np.ndarray, model: str, k: str | None, values: object
) -> None:
    given = {"model": model, "iterations": 15} | ({"k": k} if k else {})
    status, _, content = encode(server, {"image": png(photo)}, **given)
    assert status == 200, content
    found = httpx.Response(200, content=content).json()
    square, _ = decode(png(photo), 32)
    square = np.ascontiguousarray(square.transpose(1, 2, 0))
    assert np.array_equal(opened(found["image"]), square)
    wanted = open_sampler(models / model).encode(square[None], values, 15)
    assert np.array_equal(opened(found["reconstruction"]), wanted.reconstruction[0])
    assert found["psnr"] == round(float(wanted.psnr[0]), 2) and found["model"] == model
    assert found["nonzeros"] == [np.count_nonzero(code) for code in wanted.codes]
    assert found["density"] == [round(np.count_nonzero(code) / code.size, 4) for code in wanted.codes]
    status, headers, content = encode(server, {"image": png(photo)}, format="npz", **given)
    assert status == 200 and "codes.npz" in headers["content-disposition"]
    arrays = np.load(io.BytesIO(content))
    assert str(arrays["model"]) == model and list(arrays["k"]) == found["k"]
    for level, code in enumerate(wanted.codes, 1):
        assert np.array_equal(arrays[f"gamma{level}"], code)
    status, headers, content = encode(server, {"image": png(photo)}, format="png", **given)
    assert headers["content-type"] == "image/png" and np.array_equal(
        opened(content), wanted.reconstruction[0]
    )


def test_holes_do_not_count_and_transparency_is_white(server: Server, photo: np.ndarray) -> None:
    holes = np.zeros(photo.shape[:2], np.uint8)
    holes[20:40, 30:60] = 255
    damaged = np.where(holes[..., None] > 0, 255 - photo, photo)
    answers = [
        encode(server, {"image": png(one), "mask": png(holes)}, model=ML, iterations=10, format="png")
        for one in (photo, damaged)
    ]
    assert answers[0][0] == 200 and answers[0][2] == answers[1][2]
    without = encode(server, {"image": png(damaged)}, model=ML, iterations=10, format="png")
    assert without[0] == 200 and without[2] != answers[0][2]
    clear = np.zeros((40, 40, 4), np.uint8)
    status, _, content = encode(server, {"image": png(clear)}, model=ML, iterations=1)
    assert status == 200 and (opened(httpx.Response(200, content=content).json()["image"]) == 255).all()


def test_a_large_picture_is_reduced_with_its_mask(server: Server, photo: np.ndarray) -> None:
    large = np.kron(photo, np.ones((20, 20, 1), np.uint8))  # 1820 x 1200 pixels
    holes = np.zeros(large.shape[:2], np.uint8)
    holes[300:600, 500:900] = 255
    given = {"model": ML, "iterations": 2}
    status, _, content = encode(server, {"image": png(large)}, **given)
    assert status == 200, content
    whole = httpx.Response(200, content=content).json()
    square, _ = decode(png(large), 32)
    difference = opened(whole["image"]).astype(int) - square.transpose(1, 2, 0)
    assert abs(difference).max() <= 4 and abs(difference).mean() < 0.5  # resized from the means of squares
    damaged = np.where(holes[..., None] > 0, 255 - large, large)
    answers = [
        encode(server, {"image": png(one), "mask": png(holes)}, format="png", **given)
        for one in (large, damaged)
    ]
    assert answers[0][0] == 200 and answers[0][2] == answers[1][2]


def test_a_damaged_encoding_graph_is_found_when_the_server_starts(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / ML
    shutil.copytree(models / ML, folder)
    (folder / "encoding.onnx").write_bytes((folder / "encoding.onnx").read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"encoding\.onnx is truncated"):
        open_models(folder)


@pytest.mark.parametrize(
    ("files", "values", "status", "says"),
    [
        ({}, {"model": ML}, 415, "multipart/form-data"),
        ({"image": b"text"}, {"model": ML}, 400, "not an image"),
        ({"image": b""}, {"model": "dcgan-8.mI"}, 404, "similar names: dcgan-8.ml"),
        ({"image": b"x"}, {}, 422, "model is missing"),
        ({"image": b"x"}, {"model": ML, "k": "9"}, 422, "from 1 to 8; got 9"),
        ({"image": b"x"}, {"model": ML, "k": "1,2,3"}, 422, "one for each of"),
        ({"image": b"x"}, {"model": ML, "k": "many"}, 422, "such as 16,32; got 'many'"),
        ({"image": b"x"}, {"model": ML, "iterations": 501}, 422, "from 1 to 500; got '501'"),
        ({"image": b"x"}, {"model": ML, "format": "tiff"}, 422, "one of json, png, npz; got 'tiff'"),
        ({"image": b"x", "kernel": b"x"}, {"model": ML}, 422, "unknown field 'kernel'"),
        ({"image": b"x"}, {"model": ML, "mask": "https://example.com"}, 422, "mask must be a file"),
    ],
)
def test_bad_requests_are_refused(
    server: Server, files: dict[str, bytes], values: dict[str, object], status: int, says: str
) -> None:
    got, _, content = encode(server, files, **values)
    assert got == status and says in sentence(content)


def test_a_mask_must_have_the_size_of_the_picture_and_known_pixels(server: Server, photo: np.ndarray) -> None:
    for mask, says in (
        (np.zeros((40, 30), np.uint8), "the size of the image, 91 x 60 pixels; got 30 x 40"),
        (np.full(photo.shape[:2], 255, np.uint8), "no known pixel"),
    ):
        status, _, content = encode(server, {"image": png(photo), "mask": png(mask)}, model=ML)
        assert status == 422 and says in sentence(content)


def test_bentomls_client_encodes(server: Server, photo: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(png(photo))
    hole = np.zeros(photo.shape[:2], np.uint8)
    hole[20:40, 30:60] = 255
    (tmp_path / "mask.png").write_bytes(png(hole))
    with SyncHTTPClient(server.url) as client:
        found = client.encode(image=tmp_path / "photo.png", model=ML, k="2", iterations=5)
        listed = client.encode(image=tmp_path / "photo.png", model=ML, k=[2, 3], iterations=5)
        masked = client.encode(
            image=tmp_path / "photo.png", model=ML, k=2, iterations=5, mask=tmp_path / "mask.png"
        )
    client._temp_dir.cleanup()  # else a warning when it is collected
    assert found["k"] == [2, 2] and found["psnr"] > 0
    assert listed["k"] == [2, 3]
    assert masked["reconstruction"] != found["reconstruction"]


def test_searches_beyond_the_waiting_ones_are_refused() -> None:
    class Slow:
        def run(self) -> str:
            import time

            time.sleep(0.5)
            return "done"

    async def flood() -> tuple[list[type], int]:
        searches = Searches()
        running = int(searches._processors.total_tokens)
        slow: EncodeOrder = Slow()  # type: ignore[assignment]  # only its `run` is called
        tasks = []
        for _ in range(running + WAITING + 3):
            tasks.append(asyncio.ensure_future(searches(slow)))
            await asyncio.sleep(0.01)
        return [type(one) for one in await asyncio.gather(*tasks, return_exceptions=True)], running

    kinds, running = asyncio.run(flood())
    assert kinds == [str] * (running + WAITING) + [Overloaded] * 3
