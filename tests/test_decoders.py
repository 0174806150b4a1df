"""Uploads are decoded in processes with limits, whose answers are checked."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT
from PIL import Image, ImageCms
from server import until

from pictures import encoded, noise, tiff_of_one_tile, tiff_of_tiles
from sparsegen.pictures.picture import TooLarge
from sparsegen.pictures.reading import read_picture
from sparsegen.service.jobs import decoding
from sparsegen.service.jobs.decoding import Decoders, DecodersBusy
from sparsegen.service.settings import ServiceSettings

PICTURE = encoded(Image.fromarray(noise(0)))


@pytest.fixture
def pool() -> Iterator[Callable[..., Decoders]]:
    """Makes pools of decoders, and ends them."""
    made = []

    def make(**options: int) -> Decoders:
        made.append(Decoders(ServiceSettings(**options)))
        return made[-1]

    yield make
    for each in made:
        each.close()
    gc.collect()  # a process that was not ended would warn here


def idle(decoders: Decoders) -> psutil.Process:
    """The process of an idle decoder."""
    return psutil.Process(decoders._idle[-1]._process.pid)


def pictures() -> Iterator[bytes]:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield encoded(Image.fromarray(noise(1)), icc_profile=profile)
    yield encoded(Image.fromarray(np.dstack([noise(1), noise(2)[..., 0]])), "WEBP", lossless=True)
    yield encoded(Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64), "TIFF")
    yield encoded(Image.fromarray(noise(1)).convert("CMYK"), "JPEG")
    yield encoded(Image.fromarray(noise(1)[..., 0]), "GIF")


def test_a_decoded_picture_equals_one_read_directly(pool, tmp_path):
    decoders = pool()
    for content in pictures():
        (tmp_path / "file").write_bytes(content)
        here = read_picture(content)
        for source in (content, tmp_path / "file"):
            there = decoders.read(source, "it", 10_000)
            np.testing.assert_array_equal(there.pixels, here.pixels)
            assert (there.alpha is None) == (here.alpha is None)
            if here.alpha is not None:
                np.testing.assert_array_equal(there.alpha, here.alpha)
            assert (there.depth, there.mode, there.icc) == (here.depth, here.mode, here.icc)
            assert there.notes == here.notes and type(there.icc) is type(here.icc)
            assert there.with_pixels(1 - there.pixels).encode() == here.with_pixels(1 - here.pixels).encode()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_larger_picture_is_reduced_to_means(pool, channels):
    decoders, pixels = pool(), np.random.default_rng(0).integers(0, 256, (90, 61, channels), np.uint8)
    there = decoders.read(encoded(Image.fromarray(pixels.squeeze())), "it", 10_000, reduce_to=1000)
    assert there.pixels.shape[:2] == (30, 21)  # a third: a half would have more than 1000 pixels
    alpha = pixels[..., 3:] / 255.0 if channels == 4 else np.ones((90, 61, 1))
    for row, column in ((0, 0), (7, 4), (29, 20)):
        square = np.s_[3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        share = alpha[square].mean((0, 1))
        mean = (alpha[square] * pixels[square][..., :3] / 255).mean((0, 1)) / share
        np.testing.assert_allclose(there.pixels[row, column], mean, atol=1e-5)
        if channels == 4:
            assert abs(there.alpha[row, column] - 255 * share) <= 0.51
    same = decoders.read(encoded(Image.fromarray(pixels.squeeze())), "it", 10_000, reduce_to=5490)
    assert same.pixels.shape[:2] == (90, 61)


def test_photographs_of_20_megapixels_are_reduced_within_the_limits_of_a_decoder(pool):
    decoders, noise = pool(), np.random.default_rng(0).integers(0, 256, (750, 1000, 4), np.uint8)
    photo, turned = Image.fromarray(noise).resize((5000, 4000)), Image.Exif()
    turned[274] = 6
    for file, shape in (
        (encoded(photo.convert("RGB"), "JPEG", exif=turned), (1000, 800, 3)),
        (encoded(photo, "PNG", compress_level=1), (800, 1000, 3)),
    ):
        there = decoders.read(file, "it", 20_000_000, reduce_to=1_000_000)
        assert there.pixels.shape == shape and (there.alpha is not None) == file.startswith(b"\x89PNG")


def test_errors_equal_those_of_reading_directly(pool):
    decoders = pool()
    for content in (b"", b"no picture", PICTURE[:-50], encoded(Image.new("L", (8, 8))), PICTURE):
        with pytest.raises(ValueError) as here:
            read_picture(content, "it", max_pixels=1000)
        with pytest.raises(ValueError) as there:
            decoders.read(content, "it", 1000)
        assert (type(there.value), str(there.value)) == (type(here.value), str(here.value))
    assert isinstance(here.value, TooLarge)
    with pytest.raises(FileNotFoundError):
        decoders.read(Path("/nowhere"), "it", 1000)
    assert decoders.read(PICTURE, "it", 10_000).pixels.shape == (32, 32, 3)
    assert len(decoders._idle) == 1  # the same process, all the time


def test_a_file_of_a_thousand_bytes_that_takes_gigabytes_is_refused_at_its_head():
    """In a separate process, to measure its peak memory."""
    bomb = tiff_of_one_tile(16)
    assert len(bomb) < 2000
    script = """
import resource, sys
from sparsegen.pictures.reading import read_picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_picture(sys.stdin.buffer.read(), "it")
except ValueError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], input=bomb, capture_output=True, check=True)
    sentence, grown = done.stdout.decode().splitlines()
    assert "TIFF in blocks of 20000 x 20000 x 4 values" in sentence and "plain PNG" in sentence
    assert int(grown) < (50 << 10)  # KiB; with torch and threads it would be more


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not bound the address space")
def test_a_picture_that_takes_too_much_memory_is_refused_and_the_next_is_read(pool):
    decoders = pool(decoder_mb=256)
    hungry = tiff_of_tiles(16, 16, (5008, 5008))
    assert len(hungry) < 10_000 and read_picture(hungry, max_pixels=2_000_000).pixels.shape == (16, 16, 1)
    with pytest.raises(ValueError, match="it takes more than 10 seconds or 256 MB to decode, .* plain PNG"):
        decoders.read(hungry, "it", 2_000_000)
    assert decoders.read(PICTURE, "it", 10_000).pixels.shape == (32, 32, 3)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not bound the processor time")
def test_a_picture_that_takes_too_long_is_refused_and_the_next_is_read(pool):
    decoders = pool(decoder_seconds=1)
    slow = tiff_of_tiles(1000, 1000, (16, 1_000_000))
    with pytest.raises(ValueError, match="more than 1 seconds or 1024 MB"):
        decoders.read(slow, "it", 1_000_000)
    for _ in range(3):  # the seconds are those of one picture
        assert decoders.read(PICTURE, "it", 10_000).pixels.shape == (32, 32, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the limits of another process")
def test_a_decoder_has_limits_writes_no_files_and_has_no_secrets_in_its_environment(pool, monkeypatch):
    monkeypatch.setenv("SPARSEGEN_JOBS", "redis://:secret@host")
    monkeypatch.setenv("SPARSEGEN_TOKEN", "secret")
    decoders = pool(decoder_mb=300)
    decoders.read(PICTURE, "it", 10_000)
    process = idle(decoders)
    assert process.rlimit(psutil.RLIMIT_AS) == (300 << 20, 300 << 20)
    assert process.rlimit(psutil.RLIMIT_FSIZE) == process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert process.rlimit(psutil.RLIMIT_CPU)[0] < 60
    assert "secret" not in str(process.environ()) + str(process.cmdline())


def test_a_decoder_that_hangs_is_killed_and_replaced(pool):
    decoders = pool()
    decoders.read(PICTURE, "it", 10_000)
    process = idle(decoders)
    decoders._idle[-1]._patience = 0.2
    process.suspend()
    with pytest.raises(ValueError, match="to decode, the limits of this server"):
        decoders.read(PICTURE, "it", 10_000)
    assert not process.is_running()
    assert decoders.read(PICTURE, "it", 10_000).pixels.shape == (32, 32, 3)


def test_pictures_wait_for_a_decoder_and_too_many_are_refused(pool):
    decoders = pool(decoders=1)
    decoders.read(PICTURE, "it", 10_000)
    process = idle(decoders)
    process.suspend()

    def places() -> int:
        return decoders._places._value

    with ThreadPoolExecutor(1 + decoding.MAX_WAITING) as threads:
        reads = [
            threads.submit(decoders.read, PICTURE, "it", 10_000) for _ in range(1 + decoding.MAX_WAITING)
        ]
        assert until(places, 0) == 0
        with pytest.raises(DecodersBusy, match="8 pictures are waiting") as busy:
            decoders.read(PICTURE, "it", 10_000, client="b")
        assert busy.value.status == 503 and busy.value.retry_after
        process.send_signal(signal.SIGCONT)
        assert {read.result().pixels.shape for read in reads} == {(32, 32, 3)}
    assert len(decoders._idle) == 1 and places() == 1 + decoding.MAX_WAITING


def test_one_client_has_no_more_than_two_pictures_decoded_at_once(pool):
    decoders = pool(decoders=1)
    decoders.read(PICTURE, "it", 10_000)
    process = idle(decoders)
    process.suspend()
    with ThreadPoolExecutor(3) as threads:
        reads = [threads.submit(decoders.read, PICTURE, "it", 10_000, client="a") for _ in range(2)]
        assert until(lambda: decoders._clients["a"], 2) == 2
        with pytest.raises(DecodersBusy, match="2 pictures of yours are waiting"):
            decoders.read(PICTURE, "it", 10_000, client="a")
        reads.append(threads.submit(decoders.read, PICTURE, "it", 10_000, client="b"))
        assert until(lambda: decoders._clients["b"], 1) == 1
        process.resume()
        assert {read.result().pixels.shape for read in reads} == {(32, 32, 3)}
    assert not decoders._clients


def test_decoders_end_with_the_process_that_started_them():
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from test_decoders import PICTURE, Decoders, ServiceSettings
decoders = Decoders(ServiceSettings())
decoders.read(PICTURE, "it", 10_000)
print(decoders._idle[0]._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (
        not psutil.pid_exists(int(done.stdout))
        or not psutil.wait_procs([psutil.Process(int(done.stdout))], timeout=20)[1]
    )


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no json",
        "[]",
        "null",
        '{"shape": [100000, 100000, 3]}',
        '{"shape": [4, 4, 3], "alpha": "O", "icc": null, "depth": 8, "mode": "RGB", "notes": []}',
        '{"shape": [4, 4, 3], "alpha": null, "icc": null, "depth": 8, "mode": "RGB", "notes": []}',
        '{"shape": [-4, -4, 3], "alpha": null, "icc": null, "depth": 8, "mode": "RGB", "notes": []}',
        '{"error": "SystemExit", "sentence": "x"}',
    ],
)
def test_invalid_answers_of_a_decoder_are_refused(answer, pool, monkeypatch):
    monkeypatch.setattr(decoding, "DECODER", "rogue_decoder")
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    monkeypatch.setenv("LANG", answer)
    with pytest.raises(ValueError):
        pool().read(PICTURE, "it", 10_000)


def test_limits_are_read_from_the_environment_and_invalid_ones_are_refused():
    assert ServiceSettings.from_environment({}) == ServiceSettings()
    given = ServiceSettings.from_environment({"SPARSEGEN_JOB_HOURS": "0.5", "SPARSEGEN_DECODERS": "5"})
    assert given == ServiceSettings(job_hours=0.5, decoders=5) and isinstance(given.decoders, int)
    for text in ("many", "0", "1.5", "nan", "1e9"):
        with pytest.raises(
            ValueError, match=r"SPARSEGEN_DECODERS is an integer from 1 to 64: .*; got"
        ) as caught:
            ServiceSettings.from_environment({"SPARSEGEN_DECODERS": text})
        assert text in str(caught.value)
