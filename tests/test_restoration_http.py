"""Restoration jobs over HTTP: a real server, and a worker process that only imitates restorations."""

import asyncio
import http.client
import json
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import restorer
from answers import fuzz, sentence
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from server import Server, small_models, start, until  # noqa: F401 (one is a fixture)

from pictures import encoded, tiff_of_one_tile, tiff_of_tiles
from sparsegen.pictures.reading import read_picture
from sparsegen.service.http import restoration
from sparsegen.service.jobs import orders
from sparsegen.service.settings import ServiceSettings

SERVE = "import sys; from sparsegen.service.http.serve import serve; sys.exit(serve(port=int(sys.argv[1]), workers=0))"
ENDLESS = {"iterations": "100000"}
Parts = list[tuple[str, str | bytes]]


def picture(width: int = 40, height: int = 30, mode: str = "RGB", form: str = "PNG", seed: int = 0) -> bytes:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)
    return encoded(Image.fromarray(pixels), form)


def plain(value: int, width: int = 40, height: int = 30) -> bytes:
    return encoded(Image.new("L", (width, height), value))


def mask(width: int = 40, height: int = 30) -> bytes:
    image = Image.new("L", (width, height))
    image.paste(255, (5, 5, 9, 9))
    return encoded(image)


def form(parts: Parts) -> bytes:
    """A multipart body; bytes become files, strings become texts."""
    body = b""
    for name, value in parts:
        file = '; filename="my picture.png"\r\nContent-Type: image/png' if isinstance(value, bytes) else ""
        body += f'--boundary\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        body += (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
    return body + b"--boundary--\r\n"


class Client:
    """A client of the restoration routes."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def ask(self, method: str, path: str, body: object = None, kind: str = "") -> tuple[int, dict, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": kind} if kind else {})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def post(self, *parts: tuple[str, str | bytes], **texts: str) -> tuple[int, dict, dict]:
        body = form([*parts, *texts.items()])
        status, headers, answer = self.ask("POST", "/restore", body, "multipart/form-data; boundary=boundary")
        return status, headers, json.loads(answer)

    def submit(self, *parts: tuple[str, str | bytes], **texts: str) -> str:
        status, headers, answer = self.post(*(parts or [("image", picture())]), **texts)
        assert status == 202, answer
        assert headers["location"] == f"restore/{answer['id']}"
        return answer["id"]

    def state(self, job_id: str) -> dict:
        status, _, body = self.ask("GET", f"/restore/{job_id}")
        assert status == 200, body
        return json.loads(body)

    def wait(self, job_id: str, wanted: str) -> dict:
        assert until(lambda: self.state(job_id)["status"], wanted) == wanted, self.state(job_id)
        return self.state(job_id)

    def refused(self, method: str, path: str) -> tuple[int, str, dict]:
        status, headers, body = self.ask(method, path)
        assert status >= 400
        return status, sentence(json.loads(body)), headers


@pytest.fixture(scope="module")
def client(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server in whose process torch cannot be imported, and one worker."""
    folder = tmp_path_factory.mktemp("restoration") / "run"
    server = start(folder, models, [sys.executable, "-c", SERVE], SPARSEGEN_JOBS_PER_CLIENT="100")
    worker = None
    try:
        server.wait_until_ready()
        asker = Client(server)
        status, headers, answer = asker.post(("image", picture()))
        assert (status, headers["retry-after"]) == (503, "15")
        assert "start one with `sparsegen worker`" in sentence(answer)
        worker = restorer.start(str(folder / "jobs.sqlite"), folder / "trace")
        assert until(lambda: asker.post(("image", picture()))[0], 202) == 202
        yield asker
        assert not server.torch_imports.exists(), server.torch_imports.read_text()
        assert "Traceback" not in server.log.read_text()
    finally:
        if worker is not None:
            worker.terminate()
            worker.stdin.close()
            worker.wait(20)
        server.stop()


@pytest.fixture
def endless(client: Client) -> Iterator[str]:
    """A job that occupies the worker."""
    job_id = client.submit(**ENDLESS)
    client.wait(job_id, "running")
    yield job_id
    client.ask("DELETE", f"/restore/{job_id}")


def test_a_picture_is_restored_with_its_depth_and_alpha(client):
    content = picture(mode="RGBA")
    job_id = client.submit(("image", content), iterations="5", sigma="25", seed=str(2**64 - 1))
    state = client.wait(job_id, "done")
    assert (state["iteration"], state["fraction"], state["error"]) == (5, 1.0, None)
    assert state["history"][0] == [1, 1.0] and state["stopped_because"] == "the iterations are over"
    status, headers, body = client.ask("GET", f"/restore/{job_id}/result")
    assert (status, headers["content-type"]) == (200, "image/png")
    given, got = read_picture(content), read_picture(body)
    np.testing.assert_allclose(got.pixels, 1 - given.pixels, atol=1e-6)
    np.testing.assert_array_equal(got.alpha, given.alpha)
    assert client.ask("GET", f"/restore/{job_id}/preview")[2] == body
    status, headers, tiff = client.ask("GET", f"/restore/{job_id}/result?format=tiff")
    assert (status, headers["content-type"]) == (200, "image/tiff")
    np.testing.assert_array_equal(read_picture(tiff).pixels, got.pixels)
    assert client.refused("GET", f"/restore/{job_id}/result?format=jpeg")[:2] == (
        422,
        "the result cannot be encoded as jpeg (JPEG holds no alpha, and the picture has some): use format=png or tiff",
    )
    assert client.ask("POST", "/restore/", bytes(2 << 20), "multipart/form-data; boundary=boundary")[0] != 413
    assert "png, jpeg, tiff, webp" in client.refused("GET", f"/restore/{job_id}/result?format=gif")[1]


@pytest.mark.parametrize(
    ("parts", "texts"),
    [
        ([("mask", mask())], {"kind": "inpaint"}),
        ([], {"kind": "upscale", "by": "2"}),
        ([], {"kind": "deblur", "kernel": "gaussian:1.6"}),
        ([("kernel", plain(9, 17, 17))], {"kind": "deblur"}),
        ([("kernel", plain(9, 17, 17))], {"kind": "deblur", "preset": "paper", "regularizer": "l1"}),
        ([], {"density": "1e-1", "loss": "l1"}),
    ],
    ids=str,
)
def test_every_kind_of_task_is_accepted(client, parts, texts):
    client.wait(client.submit(("image", picture()), *parts, **texts), "done")


def test_a_waiting_job_has_a_position_and_a_running_one_a_preview(client, endless):
    first, second = client.submit(), client.submit(("image", picture(form="GIF", mode="L")))
    assert [client.state(each)["position"] for each in (endless, first, second)] == [None, 1, 2]
    status, text, headers = client.refused("GET", f"/restore/{first}/preview")
    assert (status, headers["retry-after"]) == (404, "2") and "no picture yet" in text
    status, text, headers = client.refused("GET", f"/restore/{first}/result")
    assert status == 409 and "waiting" in text and int(headers["retry-after"]) >= 1
    assert client.refused("GET", f"/restore/{endless}/result")[0] == 409
    assert until(lambda: client.ask("GET", f"/restore/{endless}/preview")[0], 200) == 200
    assert read_picture(client.ask("GET", f"/restore/{endless}/preview")[2]).pixels.shape == (30, 40, 3)
    assert until(lambda: (client.state(endless)["iteration"] or 0) > 3, True)
    metrics = until(lambda: gauges(client), {"waiting": 2, "running": 1}, 15)
    assert metrics == {"waiting": 2, "running": 1}
    client.ask("DELETE", f"/restore/{endless}")
    assert {client.wait(each, "done")["status"] for each in (first, second)} == {"done"}


def gauges(client: Client) -> dict[str, int]:
    text = client.server.ask("GET", "/metrics")[2].decode()
    found = re.findall(r"^sparsegen_jobs_(waiting|running)(?:\{.*\})? (.+)$", text, re.M)
    return {what: int(float(value)) for what, value in found}


def test_a_job_is_canceled_by_a_first_delete_and_removed_by_a_second(client, endless):
    status, _, body = client.ask("DELETE", f"/restore/{endless}")
    assert (status, json.loads(body)["status"]) == (200, "canceled")
    for part in ("result", "preview"):
        assert client.refused("GET", f"/restore/{endless}/{part}")[:2] == (
            410,
            "the job is canceled, so it has no result",
        )
    status, _, body = client.ask("DELETE", f"/restore/{endless}")
    assert (status, json.loads(body)["status"]) == (200, "canceled")
    for method in ("GET", "DELETE"):
        assert client.refused(method, f"/restore/{endless}")[0] == 404


def test_deleting_a_finished_job_removes_its_pictures_at_once(client):
    job_id = client.submit()
    client.wait(job_id, "done")
    status, _, body = client.ask("DELETE", f"/restore/{job_id}")
    assert (status, json.loads(body)["status"]) == (200, "done")
    for path in ("", "/result", "/preview"):
        status, text, _ = client.refused("GET", f"/restore/{job_id}{path}")
        assert status == 404 and "was deleted" in text


def test_a_failed_job_has_its_reason(client):
    job_id = client.submit(seed=str(restorer.REFUSED))
    assert client.wait(job_id, "failed")["error"] == "a picture of this seed is refused"
    status, text, _ = client.refused("GET", f"/restore/{job_id}/result")
    assert status == 410 and "refused" in text


def test_too_many_waiting_jobs_are_refused_with_a_time_to_retry(client, endless):
    taken = []
    while (answer := client.post(("image", picture())))[0] == 202:
        taken.append(answer[2]["id"])
    for each in taken:
        client.ask("DELETE", f"/restore/{each}")
    status, headers, answer = answer
    assert (status, len(taken)) == (429, 16) and "16 jobs are waiting" in sentence(answer)
    assert 60 < int(headers["retry-after"]) <= 3600  # 100000 iterations take longer than a minute
    client.ask("DELETE", f"/restore/{client.submit()}")


@pytest.mark.parametrize("path", ["0" * 32, "1", "A" * 32, "%2e%2e", "a%0Ab", "0" * 5000])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_unknown_job_is_reported(client, method, path):
    status, text, _ = client.refused(method, f"/restore/{path}")
    assert status == 404 and len(text) < 200


IMAGE = ("image", picture())
TEXT = b"this is no picture but a text of some length, which nobody could take for one"
REFUSALS = [
    ([], 422, "image is missing"),
    ([("image", b"")], 400, "the image is empty"),
    ([("image", TEXT)], 400, "the image"),
    ([("image", picture()[:-200])], 400, "the image"),
    ([("image", b"<svg/>")], 400, "the image"),
    ([("image", picture(15, 40))], 400, "at least 16"),
    ([("image", plain(0, 1001, 1000))], 400, "the command line allows up to 12 million, in tiles"),
    ([("image", plain(0, 20000, 20000))], 400, "limit is 1 million"),
    ([("image", "http://127.0.0.1:1/a.png")], 422, "image must be a file"),
    ([("image", "/etc/passwd")], 422, "image must be a file"),
    ([IMAGE, IMAGE], 422, "twice"),
    ([IMAGE, ("seed", "1"), ("seed", "1")], 422, "seed is given twice"),
    ([IMAGE, ("seed", b"1")], 422, "seed must be text, not a file"),
    ([IMAGE, ("steps", "1")], 422, "unknown field 'steps'"),
    ([IMAGE, ("a\r\nb", "1")], 400, ""),
    ([IMAGE, ("kind", "sharpen")], 422, "denoise, inpaint, upscale, deblur"),
    ([IMAGE, ("kind", "denoize")], 422, "did you mean 'denoise'"),
    ([IMAGE, ("kind", "x\ny" * 1000)], 422, "denoise, inpaint, upscale, deblur"),
    ([IMAGE, ("preset", "")], 422, "fast, paper"),
    ([IMAGE, ("regularizer", "ml")], 422, "baseline, l0_inf, l0, l1"),
    ([IMAGE, ("loss", "l2")], 422, "mse, l1"),
    ([IMAGE, ("sigma", "256")], 422, "0 to 255"),
    ([IMAGE, ("sigma", "nan")], 422, "sigma must be a number"),
    ([IMAGE, ("sigma", "")], 422, "sigma must be a number"),
    ([IMAGE, ("sigma", "1e999")], 422, "sigma"),
    ([IMAGE, ("density", "0")], 422, "density must be a number above 0"),
    ([IMAGE, ("density", "0.5"), ("regularizer", "l1")], 422, "has no density"),
    ([IMAGE, ("seed", "-1")], 422, "seed"),
    ([IMAGE, ("seed", "1.5")], 422, "seed must be an integer"),
    ([IMAGE, ("seed", "٣")], 422, "seed must be an integer"),
    ([IMAGE, ("seed", "9" * 4000)], 422, "seed must be an integer"),
    ([IMAGE, ("seed", "9" * 5000)], 400, ""),
    ([IMAGE, ("iterations", "0")], 422, "1 to 100000"),
    ([IMAGE, ("iterations", "100001")], 422, "1 to 100000"),
    ([IMAGE, ("ensemble_size", "9")], 422, "1 to 8"),
    ([IMAGE, ("ensemble_size", "two")], 422, "an integer"),
    ([IMAGE, ("members", "9")], 422, "1 to 8"),
    ([IMAGE, ("members", "2"), ("ensemble_size", "2")], 422, "both are given"),
    ([IMAGE, ("kind", "upscale")], 422, "by is 2 or 4"),
    ([IMAGE, ("kind", "upscale"), ("by", "3")], 422, "by is 2 or 4"),
    ([IMAGE, ("by", "2")], 422, "belongs to upscale, and denoise does not have it"),
    ([("image", plain(0, 300, 300)), ("kind", "upscale"), ("by", "4")], 422, "1200 x 1200 pixels"),
    ([IMAGE, ("kind", "deblur")], 422, "gaussian:1.6"),
    ([IMAGE, ("kind", "deblur"), ("kernel", "box:3")], 422, "gaussian:SIGMA"),
    ([IMAGE, ("kind", "deblur"), ("kernel", "file")], 422, "kernel is missing"),
    ([IMAGE, ("kind", "deblur"), ("kernel", plain(9, 18, 18))], 422, "odd sides"),
    ([IMAGE, ("kind", "deblur"), ("kernel", plain(0, 17, 17))], 422, "got numbers from 0 to 0"),
    ([IMAGE, ("kind", "deblur"), ("kernel", plain(9, 41, 17))], 422, "the blur kernel of 41 x 17"),
    ([IMAGE, ("kind", "deblur"), ("kernel", "gaussian:9")], 422, "the blur kernel of 55 x 55"),
    ([IMAGE, ("kernel", plain(9, 17, 17))], 422, "kernel"),
    ([IMAGE, ("kind", "inpaint")], 422, "mask is missing"),
    ([IMAGE, ("mask", mask())], 422, "denoise takes no mask"),
    ([IMAGE, ("kind", "inpaint"), ("mask", mask(41, 30))], 422, "41 x 30 pixels and the image 40 x 30"),
    ([IMAGE, ("kind", "inpaint"), ("mask", plain(0))], 422, "without a white pixel"),
    ([IMAGE, ("kind", "inpaint"), ("mask", plain(255))], 422, "without a black pixel, so no pixel is known"),
    ([IMAGE, ("kind", "inpaint"), ("mask", TEXT)], 400, "the mask"),
    ([IMAGE, *[(f"field{number}", "1") for number in range(100)]], 400, "fields"),
]


@pytest.mark.parametrize(
    ("parts", "status", "word"), REFUSALS, ids=lambda value: re.sub(r"[^\w .-]", "", str(value))[:50]
)
def test_a_bad_request_is_refused_in_one_sentence(client, parts, status, word):
    got, _, answer = client.post(*parts)
    assert got == status, answer
    assert word in sentence(answer) and len(answer["error"]) < 400


def test_the_old_name_of_ensemble_size_works_with_a_note(client):
    assert client.post(IMAGE, ("ensemble_size", "1"))[2]["notes"] == []
    status, _, answer = client.post(IMAGE, ("members", "1"))
    assert status == 202 and "members is now called ensemble_size" in answer["notes"][0]


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("", form([IMAGE]), 415),
        ("application/json", b"{}", 415),
        ("application/x-www-form-urlencoded", b"image=http%3A%2F%2F127.0.0.1%2F", 415),
        ("image/png", picture(), 415),
        ("multipart/form-data", form([IMAGE]), 400),
        ("multipart/form-data; boundary=other", form([IMAGE]), 400),
        ("multipart/form-data; boundary=boundary", b"", 422),
        ("multipart/form-data; boundary=boundary", form([IMAGE])[:-30], 422),
        ("multipart/form-data; boundary=boundary; charset=klingon", form([IMAGE]), 202),
    ],
)
def test_a_body_that_is_not_a_form_is_refused(client, kind, body, status):
    got, _, answer = client.ask("POST", "/restore", body, kind)
    assert got == status, answer


def test_an_upload_above_32_mib_is_refused_and_one_below_is_read(client):
    status, _, answer = client.post(("image", picture() + b" " * (32 << 20)))
    assert status == 413 and "33,554,432 bytes" in sentence(answer)
    assert client.post(("image", picture(form="BMP") + b" " * (2 << 20)))[0] == 202


def test_no_generated_request_breaks_the_server_or_its_openapi_document(client):
    import schemathesis
    from schemathesis import GenerationMode

    document = schemathesis.openapi.from_url(f"{client.server.url}/openapi.json")
    done = client.submit()
    client.wait(done, "done")
    paths = ["/restore/{job_id}", "/restore/{job_id}/preview", "/restore/{job_id}/result"]
    operations = [(document["/restore"]["POST"], mode) for mode in GenerationMode]
    operations += [(document[path]["GET"], GenerationMode.POSITIVE) for path in paths]
    operations += [(document[paths[0]]["DELETE"], GenerationMode.POSITIVE)]
    statuses = set().union(*(fuzz(operation, mode, 12) for operation, mode in operations))
    assert {400, 404, 422} <= statuses
    for path in (f"/restore/{done}", f"/restore/{done}/result", f"/restore/{done}/preview"):
        assert client.server.ask("GET", path)[0] == 200


def worker_of(server: Server) -> psutil.Process:
    """The process that answers requests."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    (process,) = [child for child in children if "_bentoml_impl.worker.service" in child.cmdline()]
    return process


def peak(process: psutil.Process) -> int:
    """The peak memory of a process, in bytes."""
    (line,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{process.pid}/status").read_text(), re.M)
    return int(line) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory of another process")
def test_pictures_are_not_decoded_in_the_process_that_answers_requests(client):
    process = worker_of(client.server)
    client.submit(("image", picture()))
    before = peak(process)
    hungry = tiff_of_tiles(16, 16, (4000, 4000))
    read_picture(hungry)
    assert client.post(("image", hungry))[0] == 202
    status, _, answer = client.post(("image", tiff_of_one_tile(16)))
    assert status == 400 and "TIFF in blocks of 20000 x 20000 x 4 values" in sentence(answer)
    assert peak(process) - before < 64 << 20  # the first takes 128 MB where it is decoded


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory of another process")
def test_concurrent_large_uploads_are_kept_on_the_disk(client):
    process, body, count = worker_of(client.server), form([("image", picture() + bytes(16 << 20))]), 12
    before, gate = peak(process), threading.Barrier(count)

    def post() -> tuple[int, str | None]:
        connection = http.client.HTTPConnection("127.0.0.1", client.server.port, timeout=60)
        connection.putrequest("POST", "/restore")
        connection.putheader("Content-Type", "multipart/form-data; boundary=boundary")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:-10])
        gate.wait()
        connection.send(body[-10:])
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.status, response.headers["retry-after"]

    with ThreadPoolExecutor(count) as threads:
        answers = [answer.result() for answer in [threads.submit(post) for _ in range(count)]]
    assert {status for status, _ in answers} <= {202, 429, 503, 507} and 202 in dict(answers)
    assert all(retry_after for status, retry_after in answers if status != 202)
    assert peak(process) - before < 400 << 20  # held in memory and copied, as a parser does, they were 1 GB


@pytest.mark.parametrize(
    ("parts", "texts", "words"),
    [
        (
            [("image", plain(0, 256, 256))],
            {"preset": "paper", "iterations": "100000"},
            "hours, and the limit is 8: use fewer iterations, a smaller picture or ensemble, or the preset fast; the "
            "operator can raise SPARSEGEN_JOB_HOURS",
        ),
        (
            [("image", plain(0, 1000, 1000))],
            {"preset": "paper", "iterations": "1"},
            "about 12.8 GB of memory, and the limit is 4 GB: use a smaller picture or ensemble, or the preset fast; "
            "the operator can raise SPARSEGEN_JOB_MEMORY_GB",
        ),
        ([("image", plain(0, 1000, 1000))], {"ensemble_size": "8", "iterations": "1"}, "12.1 GB of memory"),
    ],
    ids=["time", "memory", "ensemble_size"],
)
def test_a_job_beyond_the_budget_is_refused_with_the_limit_and_the_remedy(client, parts, texts, words):
    status, _, answer = client.post(*parts, **texts)
    assert status == 422 and words in sentence(answer)


@pytest.mark.parametrize(
    ("side", "texts"), [(1000, {}), (512, {"preset": "paper"}), (512, {"ensemble_size": "8"})], ids=str
)
def test_the_budget_accepts_usual_jobs(client, side, texts):
    job_id = client.submit(("image", plain(0, side, side)), **texts)
    client.ask("DELETE", f"/restore/{job_id}")


# Tests that need a broken store use the application in this process.


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("SPARSEGEN_JOBS", str(tmp_path / "jobs.sqlite"))
    monkeypatch.setattr(restoration, "REFRESH_EVERY", 3600)
    app = FastAPI()
    app.include_router(restoration.router)
    with TestClient(app) as client:
        yield client


def move(inside: TestClient, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Gives the application another, newly opened store."""
    inside.app.state.jobs.close()
    inside.app.state.jobs = restoration.Jobs()
    monkeypatch.setenv("SPARSEGEN_JOBS", place)


def test_unfinished_jobs_are_limited_per_client(inside, monkeypatch):
    monkeypatch.setenv("SPARSEGEN_JOBS_PER_CLIENT", "2")
    inside.app.state.jobs().heartbeat("A")

    def post(host: str) -> httpx.Response:
        return TestClient(inside.app, client=(host, 1)).post("/restore", files={"image": picture()})

    assert [post("192.0.2.1").status_code for _ in range(2)] == [202, 202]
    refused = post("192.0.2.1")
    assert refused.status_code == 429 and refused.headers["retry-after"]
    assert "2 jobs of yours are unfinished, the limit per client" in refused.json()["detail"]
    assert post("::ffff:192.0.2.1").status_code == 429
    accepted = post("2001:db8:1:2::1")
    assert [post(f"2001:db8:1:2::{each}").status_code for each in (2, 3)] == [
        202,
        429,
    ]  # one network of a home
    assert inside.delete(f"/restore/{accepted.json()['id']}").status_code == 200
    assert [post(host).status_code for host in ("2001:db8:1:2::4", "192.0.2.2")] == [202, 202]


def test_the_pictures_of_one_client_are_read_one_at_a_time():
    async def read() -> list[str]:
        turns, done, began = orders.Turns(ServiceSettings(decoders=2)), asyncio.Event(), []

        async def take(client: str) -> None:
            async with turns.of(client):
                began.append(client)
                await done.wait()

        async with asyncio.TaskGroup() as group:
            for client in ("A", "A", "A", "B"):
                group.create_task(take(client))
            for _ in range(10):
                await asyncio.sleep(0)
            before = list(began)
            done.set()
        assert sorted(began) == ["A", "A", "A", "B"] and not turns._own and not turns._clients
        return before

    assert asyncio.run(read()) == ["A", "B"]


def test_an_evicted_result_is_answered_with_410(inside):
    store = inside.app.state.jobs()
    store.heartbeat("A")
    job_id = inside.post("/restore", files={"image": picture()}).json()["id"]
    claim = store.claim("A")
    store.finish(claim, b"result", {"seconds": 1.0})
    store.blobs.delete(f"{job_id}:result:1")
    for part in ("result", "preview"):
        response = inside.get(f"/restore/{job_id}/{part}")
        assert response.status_code == 410 and "its picture was removed" in response.json()["detail"]


def test_a_full_disk_is_answered_with_507(inside, monkeypatch):
    store = inside.app.state.jobs()
    store.heartbeat("A")
    store.blobs.put("ballast", b"")
    for shelf in (store.jobs, store.blobs):
        pages = shelf.storage.conn.execute("pragma page_count").fetchone()[0]
        shelf.storage.conn.execute(f"pragma max_page_count={pages + 4}")
    response = inside.post("/restore", files={"image": picture(200, 200)})
    assert response.status_code == 507 and "no room for another job" in response.json()["detail"]
    assert "/" not in response.json()["detail"]  # no path
    assert store.counts() == (0, 0)


@pytest.mark.parametrize(
    "place", ["/proc/nosuch/jobs.sqlite", "mysql://name:secret@host", "redis://x:secret@127.0.0.1:1"]
)
def test_a_store_that_cannot_be_opened_is_answered_with_503_without_its_password(inside, monkeypatch, place):
    move(inside, monkeypatch, place)
    for response in (inside.post("/restore", files={"image": picture()}), inside.get(f"/restore/{'0' * 32}")):
        assert (
            response.status_code == 503
            and "the log of the server has the reason" in response.json()["detail"]
        )
        assert not re.search(r"secret|/|127\.0\.0\.1|mysql", response.text)
        assert response.headers["retry-after"]


def test_a_result_is_the_same_from_another_server(client, inside, monkeypatch):
    job_id = client.submit()
    state = client.wait(job_id, "done")
    move(inside, monkeypatch, str(client.server.log.parent / "jobs.sqlite"))
    assert inside.get(f"/restore/{job_id}").json() == state
    assert (
        inside.get(f"/restore/{job_id}/result").content == client.ask("GET", f"/restore/{job_id}/result")[2]
    )
