"""The methods of BentoML's own client: samples as arrays, and small pictures restored in one request."""

import io
import json
import re
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import restorer
from answers import fuzz, sentence
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from server import Server, running_server, small_models, start, until  # noqa: F401 (two are fixtures)

from sparsegen.service.jobs.store import Store, open_store
from sparsegen.service.sampling import MAX_COUNT

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of pathspec, which bentoml imports
    from bentoml import SyncHTTPClient
    from bentoml.exceptions import BentoMLException, NotFound

SERVE = "import sys; from sparsegen.service.http.serve import serve; sys.exit(serve(port=int(sys.argv[1]), workers=0))"
SECONDS, PIXELS = 8, 2400
KINDS = {"denoise": [25], "inpaint": [], "upscale": [2], "deblur": ["gaussian:1.6"]}  # their own arguments


@pytest.fixture(scope="module")
def served(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with low limits, and a worker that inverts pictures."""
    folder = tmp_path_factory.mktemp("methods") / "run"
    limits = {"SPARSEGEN_SYNC_SECONDS": str(SECONDS), "SPARSEGEN_SYNC_PIXELS": str(PIXELS)}
    limits["SPARSEGEN_LOG_FORMAT"] = "json"
    server = start(folder, models, [sys.executable, "-c", SERVE], **limits)
    worker = restorer.start(str(folder / "jobs.sqlite"), folder / "trace")
    try:
        server.wait_until_ready()
        assert until(lambda: "sparsegen_workers 1.0" in server.ask("GET", "/metrics")[2].decode(), True)
        yield server
        assert "Traceback" not in server.log.read_text()
    finally:
        worker.terminate()
        worker.communicate(timeout=20)
        server.stop()


@pytest.fixture
def client(served: Server) -> Iterator[SyncHTTPClient]:
    with SyncHTTPClient(served.url, timeout=60) as client:
        yield client
    client._temp_dir.cleanup()  # else a warning when it is collected


@pytest.fixture
def jobs(served: Server) -> Iterator[Store]:
    store = open_store(str(served.log.parent / "jobs.sqlite"))
    yield store
    store.close()


def picture(path: Path, size: tuple[int, int] = (20, 30)) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path) -> Path:
    image = Image.new("L", (30, 20))
    image.paste(255, (5, 5, 9, 9))
    image.save(path)
    return path


def left(store: Store) -> tuple[int, int, set[str]]:
    """The numbers of unfinished jobs and of pictures in the store, and the states of the ended jobs."""
    pictures = [name for name in store.blobs.all() if name != "done"]
    return (
        len(store.jobs.all()),
        len(pictures),
        {json.loads(end)["status"] for end in store.ends.all().values()},
    )


NOTHING = (0, 0, {"removed"})


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("dcgan-8.ml", {}),
        ("dcgan-8.ml", {"k": [3, 1]}),
        ("dcgan-8.l0", {"k": 100}),
        ("sagan-8.ml", {"labels": "cat"}),
        ("sagan-8.ml", {"labels": [0, "dog", 3, 9]}),
    ],
    ids=str,
)
def test_sample_returns_the_pixels_of_the_npy_format(served, client, model, given):
    images = client.sample(model=model, count=4, seed=2**64 - 1, **given)
    assert images.dtype == np.uint8 and images.shape == (4, 32, 32, 3)
    npy = served.sample(model=model, count=4, seed=2**64 - 1, format="npy", **given)
    np.testing.assert_array_equal(images, np.load(io.BytesIO(npy)))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"model": "dcgan-8.mx"}, NotFound, "similar names: dcgan-8.ml"),
        (
            {"model": "dcgan-8.ml", "count": 65},
            BentoMLException,
            "an integer from 1 to 64; got 65",
        ),
        ({"model": "dcgan-8.ml", "k": 9}, BentoMLException, "Γ1, from 1 to 8; got 9"),
    ],
)
def test_a_refusal_reaches_the_client_with_its_status_and_sentence(client, given, error, words):
    with pytest.raises(error) as caught:
        client.sample(**given)
    assert words in sentence(str(caught.value).encode())
    assert caught.value.error_code in (404, 422)


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_picture_is_restored_and_nothing_of_it_stays_in_the_store(client, jobs, tmp_path, kind):
    own = [mask(tmp_path / "mask.png")] if kind == "inpaint" else KINDS[kind]
    path = picture(tmp_path / "given.png")
    restored = getattr(client, kind)(path, *own, iterations=5)  # the order that docs/serving.md states
    np.testing.assert_array_equal(np.asarray(restored), 255 - np.asarray(Image.open(path)))
    assert until(lambda: left(jobs), NOTHING) == NOTHING


def test_a_pillow_image_of_a_file_is_accepted(client, tmp_path):
    with Image.open(picture(tmp_path / "given.png")) as image:
        restored = client.denoise(image, sigma=25, preset="fast", density=None, iterations=2)
    assert restored.size == (30, 20)


@pytest.mark.parametrize("prefix", ["", "/images"])
@pytest.mark.parametrize("route", ["/sample/array", "/denoise"])
def test_a_pickle_is_refused_by_the_application_and_not_read(served, route, prefix):
    headers = {"content-type": "application/vnd.bentoml+pickle", "x-forwarded-prefix": prefix}
    response = httpx.post(f"{served.url}{route}", content=b"\x80\x04.", headers=headers, timeout=60)
    assert response.status_code == 415 and "got 'application/vnd.bentoml+pickle'" in sentence(
        response.content
    )


def test_the_log_connects_the_job_of_a_method_with_its_request(served, tmp_path):
    files = {"image": picture(tmp_path / "given.png").read_bytes()}
    headers = {"x-request-id": "request-of-a-job"}
    response = httpx.post(
        f"{served.url}/denoise", files=files, data={"iterations": "2"}, headers=headers, timeout=60
    )
    assert response.status_code == 200 and response.headers["x-request-id"] == "request-of-a-job"
    (line,) = [text for text in served.log.read_text().splitlines() if "submitted: denoise, 30 x 20" in text][
        -1:
    ]
    assert json.loads(line)["request_id"] == "request-of-a-job"
    assert re.search(r"job #[0-9a-f]{8} submitted", line)


def test_a_form_of_curl_needs_no_json(served, tmp_path):
    files = {"image": picture(tmp_path / "given.png").read_bytes()}
    response = httpx.post(
        f"{served.url}/deblur", files=files, data={"kernel": "gaussian:2", "iterations": "9"}, timeout=60
    )
    assert response.status_code == 200 and response.headers["content-type"] == "image/png"


def test_a_larger_picture_is_refused_with_the_limit_and_the_remedy(client, tmp_path):
    with pytest.raises(BentoMLException) as caught:
        client.upscale(image=picture(tmp_path / "given.png"), by=4)
    assert caught.value.error_code == 422
    assert "120 x 80 pixels" in str(caught.value) and "at most 2,400: submit a job with POST /restore" in str(
        caught.value
    )


@pytest.mark.parametrize("multipart", [True, False], ids=["as a field", "as BentoML's client sends it"])
def test_an_address_in_place_of_a_picture_is_not_fetched(served, client, multipart):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(1)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/picture.png"
        if multipart:
            response = httpx.post(f"{served.url}/denoise", files={"image": (None, address)}, timeout=60)
            assert response.status_code == 422 and "image must be a file" in sentence(response.content)
        else:
            with pytest.raises(BentoMLException) as caught:
                client.denoise(image=address)
            assert caught.value.error_code == 415
        with pytest.raises(TimeoutError):
            listening.accept()


@pytest.mark.parametrize(
    ("path", "texts", "status", "words"),
    [
        ("/denoise", {"by": "2"}, 422, "unknown field 'by': the fields are image, preset"),
        ("/denoise", {"kind": "inpaint"}, 422, "unknown field 'kind'"),
        ("/denoise", {"sigma": '"loud"'}, 422, "sigma must be a number from 0 to 255; got 'loud'"),
        ("/denoise", {"preset": '"slow"'}, 422, "preset must be one of fast, paper"),
        ("/inpaint", {}, 422, "mask is missing"),
        ("/deblur", {}, 422, "kernel is missing"),
        ("/deblur", {"kernel": "file"}, 422, "kernel"),
        ("/upscale", {"by": "3"}, 422, "by is 2 or 4"),
        ("/denoise", {"seed": str(restorer.REFUSED)}, 500, "a picture of this seed is refused"),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence(served, tmp_path, path, texts, status, words):
    files = {"image": picture(tmp_path / "given.png").read_bytes()}
    response = httpx.post(f"{served.url}{path}", files=files, data=texts, timeout=60)
    assert response.status_code == status and words in sentence(response.content)


def late(path: Path, **values: object) -> dict[str, dict]:
    """A request whose restoration takes 10 seconds, but is expected to take less than 3."""
    texts = {
        "seed": str(restorer.SLOW),
        "iterations": "50",
        **{name: str(value) for name, value in values.items()},
    }
    return {"files": {"image": picture(path).read_bytes()}, "data": texts}


def test_at_the_time_limit_the_job_is_removed_and_the_answer_names_the_queue(served, jobs, tmp_path):
    began = time.monotonic()
    response = httpx.post(
        f"{served.url}/denoise", **late(tmp_path / "given.png", max_seconds=3.5), timeout=60
    )
    assert 3.5 <= time.monotonic() - began < 3.5 + 5
    assert response.status_code == 504 and int(response.headers["retry-after"]) > 0
    assert "within 3.5 seconds" in sentence(response.content) and "POST /restore" in sentence(
        response.content
    )
    assert until(lambda: left(jobs), NOTHING) == NOTHING


def test_the_job_of_a_client_that_disconnects_is_removed(served, jobs, tmp_path):
    request = httpx.Request("POST", f"{served.url}/denoise", **late(tmp_path / "given.png"))
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(f"POST /denoise HTTP/1.1\r\n{head}\r\n".encode() + request.read())
        assert until(lambda: jobs.counts()[1], 1, SECONDS) == 1
    assert until(lambda: left(jobs), NOTHING, SECONDS) == NOTHING
    assert time.monotonic() - began < SECONDS  # before the time limit


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"preset": "paper"}, "and this request waits for 8: use fewer iterations"),
        (
            {"preset": "paper", "iterations": 35, "max_seconds": 1},
            "this request waits for 1: set max_seconds to up to 8, and the timeout",
        ),
        (
            {"max_seconds": 9},
            "max_seconds is at most 8; got 9: submit a job with POST /restore; the operator can",
        ),
        ({"max_seconds": 0}, "max_seconds must be a number from 1 to 3600; got '0'"),
    ],
)
def test_what_would_take_too_long_is_refused_at_once(client, jobs, tmp_path, values, words):
    began = time.monotonic()
    with pytest.raises(BentoMLException) as caught:
        client.denoise(picture(tmp_path / "given.png"), **values)
    assert time.monotonic() - began < 4 and caught.value.error_code == 422
    assert words in str(caught.value) and left(jobs) == NOTHING


def test_a_request_that_would_wait_too_long_for_others_is_refused_at_once(served, jobs, tmp_path):
    given = late(tmp_path / "given.png", kind="denoise", iterations=1000)
    job = httpx.post(f"{served.url}/restore", **given, timeout=60).json()["id"]
    assert until(lambda: ((jobs.status(job) or {}).get("seconds_left") or 0) > 8, True)
    began = time.monotonic()
    response = httpx.post(f"{served.url}/denoise", **late(tmp_path / "given.png"), timeout=60)
    assert time.monotonic() - began < 4 and response.status_code == 429
    assert int(response.headers["retry-after"]) > 0
    assert "for the restorations before it, and this request waits for 8" in sentence(response.content)
    for _ in range(2):  # cancels, then removes
        httpx.delete(f"{served.url}/restore/{job}", timeout=60)
    assert until(lambda: left(jobs), NOTHING) == NOTHING


def test_one_document_describes_all_routes_and_the_clients_get_their_methods(served):
    document = json.loads(served.ask("GET", "/openapi.json")[2])
    assert json.loads(served.ask("GET", "/docs.json")[2]) == document
    assert {f"/{kind}" for kind in KINDS} | {
        *(
            "/models",
            "/sample",
            "/sample/array",
            "/encode",
            "/restore",
            "/restore/{job_id}",
            "/restore/{job_id}/preview",
        ),
        *("/restore/{job_id}/result", "/livez", "/healthz", "/readyz", "/metrics", "/schema.json"),
    } == set(document["paths"])
    listed = json.loads(served.ask("GET", "/schema.json")[2])["routes"]
    assert {route["name"]: route["route"] for route in listed} == {
        "sample": "/sample/array",
        "encode": "/encode",
        **{kind: f"/{kind}" for kind in KINDS},
    }
    form = document["paths"]["/denoise"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["sigma"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 255}
    array = document["paths"]["/sample/array"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert array["properties"]["count"]["maximum"] == MAX_COUNT and "format" not in array["properties"]


def test_metrics_and_the_log_show_durations_by_model_and_jobs_by_outcome(served, client, tmp_path):
    def value(name: str, **labels: str) -> float:
        families = text_string_to_metric_families(served.ask("GET", "/metrics")[2].decode())
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    about = {"endpoint": "/sample/array", "model": "dcgan-8.l0"}
    before = (
        value("sparsegen_request_seconds_count", **about),
        value("sparsegen_jobs_ended_total", outcome="done"),
    )
    client.sample(model="dcgan-8.l0", count=1)
    client.denoise(image=picture(tmp_path / "given.png"), iterations=2)
    assert value("sparsegen_request_seconds_count", **about) == before[0] + 1
    ended = until(lambda: value("sparsegen_jobs_ended_total", outcome="done") == before[1] + 1, True)
    assert ended and value("sparsegen_oldest_waiting_job_seconds") == 0
    lines = [json.loads(line) for line in served.log.read_text().splitlines() if line.startswith("{")]
    last = [line for line in lines if line.get("endpoint") == "/sample/array"][-1]
    assert last["model"] == "dcgan-8.l0" and last["status"] == 200 and len(last["request_id"]) == 16


@pytest.mark.parametrize("path", ["/sample/array", "/encode", "/denoise", "/inpaint", "/upscale", "/deblur"])
def test_no_generated_request_breaks_the_server_or_its_openapi_document(served, path):
    import schemathesis
    from schemathesis import GenerationMode

    operation = schemathesis.openapi.from_url(f"{served.url}/openapi.json")[path]["POST"]
    statuses = set().union(*(fuzz(operation, mode, 12) for mode in GenerationMode))
    assert statuses & {400, 422}
