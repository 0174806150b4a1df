"""The endpoints of the page for programs, called by gradio_client on a real server with an imitated worker."""

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fader
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from httpx import HTTPStatusError
from PIL import Image
from server import Server, running_server, small_models, start, until  # noqa: F401 (two are fixtures)

from pictures import encoded
from sparsegen.service.jobs.store import open_store
from sparsegen.service.page import restoration_layout

SERVE = "import sys; from sparsegen.service.http.serve import serve; sys.exit(serve(port=int(sys.argv[1]), workers=0))"
TOKEN = "a-token-of-the-tests-0123"
LEAVES = """
import sys; from gradio_client import Client
client = Client(f"{sys.argv[1]}/ui/", verbose=False, headers={"Authorization": f"Bearer {sys.argv[2]}"})
client.predict(kind="inpaint", api_name="/restore")
"""


@pytest.fixture(scope="module", name="restoring")
def server_with_a_token_and_a_worker(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("page-api") / "run"
    server = start(folder, models, [sys.executable, "-c", SERVE], SPARSEGEN_TOKEN=TOKEN)
    server.wait_until_ready()
    worker = fader.start(str(folder / "jobs.sqlite"))
    try:
        yield server
        assert "Traceback" not in server.log.read_text()
    finally:
        worker.terminate()
        worker.wait(20)
        worker.stdin.close()
        server.stop()


@pytest.fixture(scope="module", name="client")
def client_with_the_token(restoring: Server) -> Iterator[Client]:
    client = Client(f"{restoring.url}/ui/", verbose=False, headers={"Authorization": f"Bearer {TOKEN}"})
    yield client
    client.close()


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_the_documented_endpoints_have_defaults_for_all_arguments(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/models", "/sample", "/encode", "/restore"}
    for endpoint in endpoints.values():
        assert endpoint["description"] and all(one["parameter_has_default"] for one in endpoint["parameters"])
    text = client.view_api(print_info=False, return_format="str")
    assert 'predict(model, count, seed, k, labels, format, api_name="/sample")' in text
    assert "list[filepath]" in text and "image: None | filepath" in text


def test_without_the_token_there_is_no_endpoint(restoring):
    with pytest.raises(Exception, match="credentials"):
        Client(f"{restoring.url}/ui/", verbose=False)


def test_sample_returns_image_files_without_an_argument(client):
    files = client.predict(api_name="/sample")
    first = client.predict(api_name="/models")[0]
    assert len(files) == 16 and first["name"] in files[0]
    assert {pixels(file).shape for file in files} == {(first["image_size"], first["image_size"], 3)}


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("dcgan-8.ml", {"k": [2, 1]}),
        ("dcgan-8.l0", {"k": 300}),
        ("sagan-8.ml", {"labels": "cat"}),
        ("dcgan-8.ml", {}),
    ],
    ids=str,
)
def test_the_files_have_the_pixels_of_the_http_interface(client, server, model, given):
    over_http = np.load(io.BytesIO(server.sample(model=model, count=5, seed=7, format="npy", **given)))
    files = client.predict(model=model, count=5, seed=7, api_name="/sample", **given)
    np.testing.assert_array_equal([pixels(file) for file in files], over_http)
    (array,) = client.predict(model=model, count=5, seed=7, format="npy", api_name="/sample", **given)
    np.testing.assert_array_equal(np.load(array), over_http)
    (grid,) = client.predict(model=model, count=5, seed=7, format="grid", api_name="/sample", **given)
    assert Path(grid).read_bytes() == server.sample(model=model, count=5, seed=7, **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "dcgan-9"}, "no model 'dcgan-9'; similar names: dcgan-8"),
        ({"count": 65}, "count must be .* 64"),
        ({"seed": -1}, "seed"),
        ({"k": "a"}, "k"),
        ({"labels": 3}, "unconditional|no classes"),
        ({"format": "gif"}, "format must be one of"),
    ],
    ids=str,
)
def test_an_invalid_argument_is_reported_in_a_sentence(client, given, words):
    with pytest.raises(AppError, match=words):
        client.predict(api_name="/sample", **({"model": "dcgan-8.ml"} | given))


def test_encode_returns_the_image_and_the_codes_of_the_http_interface(client, server, tmp_path):
    pixels_given = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    path = tmp_path / "given.png"
    Image.fromarray(pixels_given).save(path)
    image, codes = client.predict(
        image=handle_file(path), model="dcgan-8.ml", k=[3, 2], iterations=8, api_name="/encode"
    )
    answer = httpx.post(
        f"{server.url}/encode",
        files={"image": path.read_bytes()},
        data={"model": "dcgan-8.ml", "k": "3,2", "iterations": "8", "format": "npz"},
    )
    found, wanted = np.load(codes), np.load(io.BytesIO(answer.content))
    assert set(found) == set(wanted) and all(np.array_equal(found[name], wanted[name]) for name in found)
    np.testing.assert_array_equal(np.asarray(Image.open(image)), wanted["reconstruction"][0])
    assert len(client.predict(iterations=1, api_name="/encode")) == 2
    with pytest.raises(AppError, match="from 1 to 8; got 9"):
        client.predict(model="dcgan-8.ml", k=9, api_name="/encode")


def test_restore_takes_a_picture_and_returns_one_and_keeps_no_job(client, restoring, tmp_path):
    given = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    path = tmp_path / "given.png"
    path.write_bytes(encoded(Image.fromarray(given)))
    job = client.submit(image=handle_file(path), sigma=25, api_name="/restore")
    np.testing.assert_array_equal(pixels(job.result(60)), 255 - given)  # the result of this worker
    store = open_store(str(restoring.log.parent / "jobs.sqlite"))
    assert store.live() == [] and store.blobs.all() == {}
    store.close()


def test_restore_without_an_argument_restores_the_example(client):
    restored = pixels(client.predict(api_name="/restore"))
    np.testing.assert_allclose(
        restored, 255 - np.asarray(Image.open(restoration_layout.EXAMPLES / "noisy.jpg")).astype(int), atol=1
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "deblur"}, "has no example: give a picture"),
        ({"kind": "sharpen"}, "no example"),
        ({"sigma": -2}, "sigma"),
        ({"preset": "slow"}, "preset must be one of"),
        ({"iterations": 2.5}, "iterations must be an integer"),
        ({"image": "/etc/passwd"}, "opens no other file"),
        ({"image": {"path": "/etc/passwd"}}, "opens no other file|403 Forbidden"),
        ({"image": "http://127.0.0.1/a.png"}, "opens no other file"),
    ],
    ids=str,
)
def test_an_invalid_restoration_is_reported_in_a_sentence(client, given, words):
    with pytest.raises((AppError, HTTPStatusError), match=words):
        client.predict(api_name="/restore", **given)


def test_a_canceled_call_ends_its_job(client, restoring):
    store = open_store(str(restoring.log.parent / "jobs.sqlite"))
    job = client.submit(kind="inpaint", api_name="/restore")  # ten times as long
    assert until(lambda: [one.running for one in store.live()], [True]) == [True]
    job.cancel()
    assert until(lambda: store.live(), [], 20) == []
    store.close()


def test_a_client_that_leaves_ends_its_job(restoring):
    store = open_store(str(restoring.log.parent / "jobs.sqlite"))
    program = subprocess.Popen([sys.executable, "-c", LEAVES, restoring.url, TOKEN])
    assert until(lambda: [one.running for one in store.live()], [True]) == [True]
    program.kill()
    program.wait()
    assert until(lambda: store.live(), [], 120) == []
    store.close()
