import asyncio
import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from answers import fuzz, sentence
from conftest import CLASSES
from PIL import Image
from server import (  # noqa: F401 (two are fixtures)
    NO_TORCH,
    Server,
    free_port,
    running_server,
    small_models,
    start,
    until,
)

from sparsegen.export.runtime import expected_provider, open_sampler
from sparsegen.service.http import batching
from sparsegen.service.http.batching import Batcher, Overloaded
from sparsegen.service.http.sampling import _key, create_batcher
from sparsegen.service.http.serve import serve
from sparsegen.service.models import open_models, sources
from sparsegen.service.sampling import SampleRequest
from sparsegen.zoo import noise
from sparsegen.zoo.bundled import CONFIG, GRAPH, SYNTHESIS, WEIGHTS, list_models
from sparsegen.zoo.checkpoint import from_pretrained

ML, L0, BASELINE = "dcgan-8.ml", "dcgan-8.l0", "dcgan-8.baseline"
CONDITIONAL = "sagan-8.ml"
BIG = b" " * (50 << 20)


def pixels_of(npy: bytes) -> np.ndarray:
    return np.load(io.BytesIO(npy), allow_pickle=False)


@pytest.mark.parametrize(("model", "k"), [(ML, None), (ML, [3, 1]), (L0, 100), (BASELINE, None)])
def test_an_image_over_http_equals_the_runtime_and_is_within_a_gray_level_of_torch(server, model, k):
    over_http = pixels_of(server.sample(model=model, count=5, seed=2**64 - 1, k=k, format="npy"))
    assert over_http.dtype == np.uint8 and over_http.shape == (5, 32, 32, 3)
    np.testing.assert_array_equal(
        over_http, open_sampler(server.models / model).sample(5, seed=2**64 - 1, k=k)
    )
    by_torch = from_pretrained(server.models / model).sample(5, seed=2**64 - 1, k=k)
    assert np.abs(over_http.astype(int) - by_torch).max() <= 1
    assert len(np.unique(over_http)) > 20  # not a constant


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        (None, None),
        (3, 3),
        ("cat", 3),
        ("3", 3),
        ([9, 0, 0, 5, 3], [9, 0, 0, 5, 3]),
        (["truck", 0, "airplane", "dog", 3], [9, 0, 0, 5, 3]),
    ],
)
def test_images_with_labels_equal_those_of_the_runtime(server, labels, numbers):
    request = {"model": CONDITIONAL, "count": 5, "seed": 11, "k": [4, 2], "labels": labels, "format": "npy"}
    over_http = pixels_of(server.sample(**request))
    sampler = open_sampler(server.models / CONDITIONAL)
    np.testing.assert_array_equal(over_http, sampler.sample(5, seed=11, k=[4, 2], labels=numbers))
    generator = from_pretrained(server.models / CONDITIONAL)
    by_torch = generator.sample(5, seed=11, k=[4, 2], labels=numbers).astype(int)
    assert (np.abs(over_http - by_torch) <= 1).mean() > 0.999
    other = sampler.sample(5, seed=11, k=[4, 2], labels=1).astype(int)
    assert np.abs(over_http - other).mean() > 2  # the class changes the image


def test_the_three_formats_hold_the_same_pixels(server):
    request = {"model": ML, "count": 5, "seed": 3}
    pixels = pixels_of(server.sample(**request, format="npy"))
    for image, expected in zip(
        json.loads(server.sample(**request, format="png"))["images"], pixels, strict=True
    ):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))), expected)
    grid = np.asarray(Image.open(io.BytesIO(server.sample(**request))))
    assert grid.shape == (2 + 2 * 34, 2 + 3 * 34, 3)  # two rows of three
    for index, expected in enumerate(pixels):
        top, left = 2 + index // 3 * 34, 2 + index % 3 * 34
        np.testing.assert_array_equal(grid[top : top + 32, left : left + 32], expected)


def test_defaults_are_sixteen_images_of_seed_0_with_the_k_of_training_as_a_grid(server):
    status, kind, body = server.ask("POST", "/sample", json.dumps({"model": ML}))
    assert (status, kind) == (200, "image/png")
    assert body == server.sample(model=ML, count=16, seed=0, k=[2, 2], format="grid")


def test_models_are_listed_with_their_ranges_of_k(server):
    status, kind, body = server.ask("GET", "/models")
    assert (status, kind) == (200, "application/json")
    listed = {model["name"]: model for model in json.loads(body)["models"]}
    assert sorted(listed) == [BASELINE, L0, ML, CONDITIONAL]
    assert listed[CONDITIONAL]["classes"] == CLASSES and listed[ML]["classes"] == []
    assert listed[BASELINE]["k"] == [] and listed[BASELINE]["regularizer"] == "baseline"
    assert listed[L0]["k"] == [{"level": 1, "unit": "code", "trained": 512, "min": 1, "max": 8 * 16 * 16}]
    assert [k["max"] for k in listed[ML]["k"]] == [8, 8]
    assert listed[ML]["provider"] == expected_provider()
    assert (
        listed[ML]["license"] == "apache-2.0"
        and listed[ML]["steps"] == 3
        and listed[ML]["evaluation"] is None
    )


def test_the_server_never_imports_torch(server):
    server.sample(model=ML)
    assert server.ask("GET", "/ui/")[0] == 200
    assert not server.torch_imports.exists(), server.torch_imports.read_text()


def test_health_readiness_and_metrics_answer(server):
    server.sample(model=ML)
    assert server.ask("GET", "/healthz")[0] == server.ask("GET", "/readyz")[0] == 200
    metrics = server.ask("GET", "/metrics")[2].decode()
    assert re.search(r'sparsegen_requests_total\{.*endpoint="/sample".*\} \d', metrics)
    assert "sparsegen_batch_images_bucket" in metrics
    assert f'sparsegen_models{{provider="{expected_provider()}"}} 4.0' in metrics


def test_the_root_redirects_to_the_page_and_the_docs_load_from_the_server(server):
    assert server.ask("GET", "/")[0] == 307
    status, _, page = server.ask("GET", "/docs")
    files = re.findall(r'(?:src|href)="([^"]+)"', page.decode())
    assert status == 200 and len(files) == 3 and "openapi.json" in page.decode()
    for file in files:
        assert "//" not in file and server.ask("GET", f"/{file}")[0] == 200


def test_the_openapi_document_has_the_limits(server):
    document = json.loads(server.ask("GET", "/openapi.json")[2])
    schema = document["paths"]["/sample"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    count, seed = schema["properties"]["count"], schema["properties"]["seed"]
    assert (count["minimum"], count["maximum"], count["default"]) == (1, 64, 16)
    assert (seed["minimum"], seed["maximum"], seed["default"]) == (0, 2**64 - 1, 0)
    assert schema["properties"]["model"]["enum"] == [BASELINE, L0, ML, CONDITIONAL]
    labels = schema["properties"]["labels"]
    assert labels["default"] is None and labels["anyOf"][2]["maxItems"] == 64
    assert f"{CONDITIONAL}: {', '.join(CLASSES)}" in labels["description"]
    assert f"{ML}: none" in labels["description"]
    assert f"{L0}: 1 to 2048 per code of Γ1" in schema["properties"]["k"]["description"]


REFUSED = [
    ({"count": 0}, 422, "count"),
    ({"count": 65}, 422, "count"),
    ({"count": 10**9}, 422, "count"),
    ({"count": "5"}, 422, "count"),
    ({"count": 1.5}, 422, "count"),
    ({"count": True}, 422, "count"),
    ({"count": None}, 422, "count"),
    ({"seed": -1}, 422, "seed"),
    ({"seed": 2**64}, 422, "seed"),
    ({"seed": "7"}, 422, "seed"),
    ({"k": 0}, 422, "Γ1, from 1 to 8"),
    ({"k": 9}, 422, "Γ1, from 1 to 8"),
    ({"k": [1, 2, 3]}, 422, "Γ1, Γ2"),
    ({"k": []}, 422, "Γ1, Γ2"),
    ({"k": [1, "2"]}, 422, "Γ2"),
    ({"count": 2, "k": [[1, 2]]}, 422, "k of each image must be 2 lists, one per image; got 1"),
    (
        {"count": 2, "k": [[1, 2], [1, 9]]},
        422,
        "image 1: k is the non-zeros kept in each needle of Γ2, from 1 to 8; got 9",
    ),
    ({"count": 2, "k": [[1, 2], 3.5]}, 422, "image 1: "),
    ({"count": 2, "k": [[1, 2], [[1], 2]]}, 422, "image 1: "),
    ({"k": {"1": 2}}, 422, "k is"),
    ({"k": True}, 422, "k is"),
    ({"model": BASELINE, "k": 3}, 422, "without a projection"),
    ({"model": L0, "k": 2049}, 422, "2048"),
    ({"model": "dcgan-8.mx"}, 404, ML),
    ({"model": "../../etc/passwd"}, 404, ML),
    ({"model": 7}, 422, "model"),
    ({"model": None}, 422, "model is missing"),
    ({"labels": 0}, 422, "omit them"),
    ({"labels": "cat"}, 422, "omit them"),
    ({"model": CONDITIONAL, "labels": 10}, 422, "9 truck, from 0 to 9; got 10"),
    ({"model": CONDITIONAL, "labels": -1}, 422, "9 truck, from 0 to 9; got -1"),
    ({"model": CONDITIONAL, "labels": 2**70}, 422, "from 0 to 9"),
    ({"model": CONDITIONAL, "labels": "kat"}, 422, "did you mean 'cat'"),
    ({"model": CONDITIONAL, "labels": ["cat", "kat"], "count": 2}, 422, "no class 'kat'"),
    ({"model": CONDITIONAL, "labels": "c" * 100_000}, 422, "no class"),
    ({"model": CONDITIONAL, "labels": [1, 2]}, 422, "one for each of 16; got 2"),
    ({"model": CONDITIONAL, "labels": []}, 422, "got 0"),
    ({"model": CONDITIONAL, "labels": True}, 422, "got True"),
    ({"model": CONDITIONAL, "labels": 1.5}, 422, "got 1.5"),
    ({"model": CONDITIONAL, "labels": [[1]], "count": 1}, 422, "got [1]"),
    ({"model": CONDITIONAL, "labels": {"cat": 1}}, 422, "a label is"),
    ({"format": "gif"}, 422, "grid, png, npy"),
    ({"format": ["grid"]}, 422, "grid, png, npy"),
    ({"steps": 1}, 422, "unknown field 'steps'"),
]


@pytest.mark.parametrize(("change", "status", "word"), REFUSED, ids=lambda value: str(value)[:30])
def test_a_bad_value_is_refused_in_one_sentence(server, change, status, word):
    got, kind, body = server.ask("POST", "/sample", json.dumps({"model": ML} | change))
    assert (got, kind) == (status, "application/json"), body
    assert word in sentence(body)


BROKEN = [
    (b"", 400, "empty"),
    (b"{", 400, "JSON"),
    (b'{"model": "dcgan-8.ml", "count": NaN}', 400, "NaN"),
    (b'{"model": "dcgan-8.ml", "count": 1e999}', 422, "count"),
    (b'{"model": "dcgan-8.ml", "seed": ' + b"9" * 5000 + b"}", 400, "5000 digits"),
    (b'{"model": "\xff"}', 400, "UTF-8"),
    (b'{"model": "\\ud800"}', 404, "no model"),
    (b"[" * 100_000, 400, "nested"),
    (
        b'{"model": "dcgan-8.ml", "k": ' + b"[" * 500 + b"]" * 500 + b"}",
        422,
        "k of each image must be 16 lists",
    ),
    (b"[]", 422, "object"),
    (b"null", 422, "object"),
    (b'"dcgan-8.ml"', 422, "object"),
    (b"{}", 422, "model is missing"),
]


@pytest.mark.parametrize(("body", "status", "word"), BROKEN, ids=lambda value: str(value)[:30])
def test_an_invalid_body_is_refused_in_one_sentence(server, body, status, word):
    got, kind, answer = server.ask("POST", "/sample", body)
    assert (got, kind) == (status, "application/json"), answer
    assert word in sentence(answer)


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "image/png", ";"]
)
def test_a_body_that_is_not_declared_as_json_is_refused(server, content_type):
    status, _, body = server.ask("POST", "/sample", b'{"model": "dcgan-8.ml"}', content_type)
    assert status == 415 and "application/json" in sentence(body)
    assert (
        server.ask("POST", "/sample", b'{"model": "dcgan-8.ml"}', "Application/JSON; charset=utf-8")[0] == 200
    )


@pytest.mark.parametrize("body", [BIG, None], ids=["with its length", "in chunks"])
@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/sample", "1,048,576"),
        ("/restore", "33,554,432"),
        ("/ui/gradio_api/upload", "34,603,008"),
        ("/ui/gradio_api/queue/join", "65,536"),
    ],
)
def test_a_body_of_50_mb_is_refused_as_too_large(server, path, limit, body):
    body = body or (BIG[: 1 << 20] for _ in range(50))
    status, _, answer = server.ask("POST", path, body)
    assert status == 413 and f"{limit} bytes" in sentence(answer)


@pytest.mark.parametrize(("method", "path"), [("GET", "/sample"), ("PUT", "/sample"), ("POST", "/models")])
def test_another_method_is_refused(server, method, path):
    status, _, body = server.ask(method, path)
    assert status == 405 and f"'{path}' does not allow {method}" in sentence(body)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/nosuch", 404),
        ("POST", "/sample/more", 404),
        ("GET", "/a%0Ab/{c}", 404),
        ("GET", "/static_content/nosuch.js", 404),
        ("POST", "/healthz", 405),
    ],
)
def test_refusals_by_bentoml_have_the_same_form_as_ours(server, method, path, expected):
    status, kind, body = server.ask(method, path)
    assert (status, kind) == (expected, "application/json")
    assert sentence(body)


@pytest.mark.parametrize(
    "path", ["/livez", "/healthz", "/readyz", "/metrics", "/docs.json", "/schema.json", "/ui/"]
)
def test_bentomls_addresses_and_the_page_answer(server, path):
    assert server.ask("GET", path)[0] == 200


def test_too_many_concurrent_requests_are_refused_until_some_end(server):
    with contextlib.ExitStack() as stack:
        for _ in range(100):  # requests that never send the body they promise
            waiting = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            waiting.sendall(
                b"POST /sample HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n"
            )
        statuses = until(lambda: server.ask("GET", "/models")[0], 429)
        assert server.ask("GET", "/healthz")[0] == 200
    assert statuses == 429
    assert until(lambda: server.ask("GET", "/models")[0], 200) == 200


def test_concurrent_requests_are_merged_without_changing_their_pixels(server):
    requests = [
        {"model": model, "count": count, "seed": seed, "k": k, "format": "npy"}
        for seed in range(6)
        for model, count, k in [
            (ML, 3, None),
            (ML, 1 + seed, [2, 2]),
            (ML, 64, 1),
            (L0, 2, None),
            (BASELINE, 5, None),
        ]
    ]
    requests += [
        {"model": CONDITIONAL, "count": count, "seed": seed, "labels": labels, "format": "npy"}
        for seed, (count, labels) in enumerate([(3, None), (1, "cat"), (4, 5), (2, ["ship", 0]), (60, None)])
    ]
    alone = [server.sample(**request) for request in requests]
    images, runs = batches(server)
    gate = threading.Barrier(len(requests))

    def ask(request: dict) -> bytes:
        gate.wait()
        return server.sample(**request)

    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(ask, requests))
    assert together == alone
    images_after, runs_after = batches(server)
    assert images_after - images == sum(request["count"] for request in requests)
    assert runs_after - runs < len(requests)


def test_a_sweep_of_k_is_one_request(server):
    for model, k in ((ML, [[1, 1], [2, 8], [8, 3], [1, 1]]), (L0, [[1], [100], [2048], [7]])):
        found = pixels_of(server.sample(model=model, count=4, seed=3, k=k, format="npy"))
        for index, each in enumerate(k):
            alone = pixels_of(server.sample(model=model, count=4, seed=3, k=each, format="npy"))
            np.testing.assert_array_equal(found[index], alone[index])


def test_requests_with_different_k_share_a_batch(models):
    opened, _ = open_models(models)
    sampler = opened[ML].sampler
    orders = [
        SampleRequest.parse({"model": ML, "count": 2, "seed": seed, "k": seed + 1}).resolve(opened)
        for seed in range(5)
    ]
    runs = []

    async def ask() -> list[np.ndarray]:
        batcher = create_batcher(opened)
        batcher._observe = runs.append
        return await asyncio.gather(*(batcher(_key(order), order.rows()) for order in orders))

    assert sampler.divided
    found = asyncio.run(ask())
    assert runs == [10]
    for seed, pixels in enumerate(found):
        np.testing.assert_array_equal(pixels, sampler.sample(2, seed, k=seed + 1))


def test_requests_with_different_labels_share_a_batch(models):
    opened, _ = open_models(models)
    bodies = [{"count": 2, "labels": "cat"}, {"count": 1, "labels": 7}, {"count": 3, "seed": 5}]
    requests = [SampleRequest.parse({"model": CONDITIONAL, **body}).resolve(opened) for body in bodies]
    runs = []

    def run(key: str, rows: np.ndarray) -> np.ndarray:
        runs.append(len(rows))
        return rows["label"]

    async def ask() -> list[np.ndarray]:
        batcher = Batcher(run)
        return await asyncio.gather(*(batcher("one", request.rows()) for request in requests))

    labels = asyncio.run(ask())
    assert runs == [6]
    assert [list(found) for found in labels[:2]] == [[3, 3], [7]]
    assert list(labels[2]) == list(noise.labels(3, 10, seed=5))
    np.testing.assert_array_equal(requests[2].rows()["z"], noise.z(3, 128, seed=5))


def batches(server: Server) -> tuple[int, int]:
    metrics = server.ask("GET", "/metrics")[2].decode()
    values = [
        re.search(rf"^sparsegen_batch_images_{what}(?:\{{.*\}})? (.+)$", metrics, re.M)[1]
        for what in ("sum", "count")
    ]
    return int(float(values[0])), int(float(values[1]))


def test_the_batcher_merges_requests_with_the_same_key_up_to_its_limit():
    runs = []

    def run(key: str, rows: np.ndarray) -> np.ndarray:
        runs.append((key, len(rows)))
        return rows * 10

    async def ask() -> list[np.ndarray]:
        batcher = Batcher(run, limit=8)
        wanted = [("a", 3), ("b", 1), ("a", 3), ("a", 3), ("a", 8)]
        rows = [(key, np.full((count, 1), index)) for index, (key, count) in enumerate(wanted)]
        return await asyncio.gather(*(batcher(key, row) for key, row in rows))

    results = asyncio.run(ask())
    assert [(len(rows), set(rows.flat)) for rows in results] == [
        (3, {0}),
        (1, {10}),
        (3, {20}),
        (3, {30}),
        (8, {40}),
    ]
    assert sorted(runs) == [("a", 3), ("a", 6), ("a", 8), ("b", 1)]


def test_the_batcher_passes_an_error_to_all_requests_and_continues():
    def run(key: str, rows: np.ndarray) -> np.ndarray:
        if key == "bad":
            raise RuntimeError("no such thing")
        return rows

    async def ask() -> None:
        batcher = Batcher(run)
        failed = await asyncio.gather(
            *(batcher("bad", np.ones((1, 1))) for _ in range(3)), return_exceptions=True
        )
        assert [str(error) for error in failed] == ["no such thing"] * 3
        gone = asyncio.ensure_future(batcher("good", np.ones((1, 1))))
        stays = asyncio.ensure_future(batcher("good", np.zeros((2, 1))))
        await asyncio.sleep(0)
        gone.cancel()
        assert (await stays).shape == (2, 1)

    asyncio.run(ask())


def test_the_batcher_refuses_requests_that_would_wait_too_long():
    started, go_on = threading.Event(), threading.Event()

    def run(key: str, rows: np.ndarray) -> np.ndarray:
        started.set()
        assert go_on.wait(30)
        return rows

    async def ask() -> tuple[list, int]:
        in_time = int(2 / batching.FIRST_PACE)  # rows
        batcher = Batcher(run, limit=in_time, patience=1)
        busy = asyncio.ensure_future(batcher("slow", np.ones((in_time, 1))))
        await asyncio.to_thread(started.wait)
        refused = await asyncio.gather(
            *(batcher(key, np.ones((1, 1))) for key in ("slow", "other")), return_exceptions=True
        )
        go_on.set()
        await busy
        return refused, len(await batcher("slow", np.ones((1, 1))))

    refused, served = asyncio.run(ask())
    assert [type(error) for error in refused] == [Overloaded] * 2 and served == 1
    assert [error.seconds for error in refused] == pytest.approx([1, 1], abs=0.01)


def test_the_batcher_measures_the_pace_per_kind():
    def run(key: tuple[str, int], rows: np.ndarray) -> np.ndarray:
        time.sleep(0.02 if key[0] == "slow" else 0)
        return rows

    async def ask() -> tuple[float, float]:
        batcher, expected = Batcher(run, kind=lambda key: key[0]), []
        for name in ("slow", "fast"):
            await batcher((name, 1), np.ones((1, 1)))
            waiting = asyncio.ensure_future(batcher((name, 2), np.ones((10, 1))))
            await asyncio.sleep(0)
            expected.append(batcher.expected_seconds())
            await waiting
        assert batcher.expected_seconds() == 0
        return tuple(expected)

    slow, fast = asyncio.run(ask())
    assert slow >= 0.2 > fast


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_generated_request_breaks_the_server_or_its_openapi_document(server, mode):
    import schemathesis

    operation = schemathesis.openapi.from_url(f"{server.url}/openapi.json")["/sample"]["POST"]
    statuses = fuzz(operation, schemathesis.GenerationMode(mode), 60)
    assert (200 if mode == "positive" else 422) in statuses


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
def test_serve_prints_the_address_of_the_page_and_ends_with_its_workers_on_ctrl_c(models, tmp_path):
    server = start(tmp_path / "run", models)
    try:
        server.wait_until_ready()
        line = f"The page: {server.url}/ui"
        assert until(lambda: line in server.log.read_text(), True)
    finally:
        assert server.stop(signal.SIGINT) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))
    assert "Traceback" not in server.log.read_text()


def test_serve_refuses_a_port_that_is_taken(models, monkeypatch):
    monkeypatch.setenv("SPARSEGEN_MODELS", str(models))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port} .*choose another --port"):
            serve(port=port)


def test_serve_refuses_an_unknown_host(models, monkeypatch):
    monkeypatch.setenv("SPARSEGEN_MODELS", str(models))
    with pytest.raises(OSError, match="unknown host 'nosuchhost.invalid': choose another --host"):
        serve("nosuchhost.invalid", free_port())
    with pytest.raises(OSError, match="cannot listen on 192.0.2.1:.*choose another --host"):
        serve("192.0.2.1", free_port())  # is kept for documentation, so no machine has it


def test_serve_refuses_a_folder_without_models(tmp_path, monkeypatch):
    for folder in (tmp_path, tmp_path / "missing"):
        monkeypatch.setenv("SPARSEGEN_MODELS", str(folder))
        with pytest.raises(FileNotFoundError, match="no models to serve.*SPARSEGEN_MODELS"):
            serve(port=free_port())


def test_models_come_from_folders_of_folders_single_folders_names_and_the_hub(models, monkeypatch, tmp_path):
    monkeypatch.setattr("sparsegen.zoo.hub.download", lambda given: {"me/mine": models / ML}[given])
    shutil.copytree(models / L0, tmp_path / "a, b" / "own")
    monkeypatch.chdir(tmp_path)
    opened, refused = open_models(*sources(f"bundled,{models / L0},me/mine"), *sources("a, b"))
    assert refused == [] and set(opened) == {*list_models(), L0, "me/mine", "own"}
    assert opened["me/mine"].source == "me/mine" and opened["dcgan.ml"].bundled and not opened["own"].bundled
    assert set(open_models("dcgan.ml")[0]) == {"dcgan.ml"}
    monkeypatch.setenv("SPARSEGEN_MODELS", "own,bundled")
    (tmp_path / "own").mkdir()
    assert sources() == [str(tmp_path / "own"), "bundled"]
    for given, says in {
        ("bundled", "nothing"): "nothing is not a bundled model, a folder, or owner/name on the Hub",
        (str(models / L0), f"a, b/../{L0}", str(models / L0)): "a, b/../",
        ("dcgan.ml", "dcgan.ml"): "dcgan.ml is not served: another model has the same name",
    }.items():
        with pytest.raises((OSError, ValueError), match=re.escape(says)):
            open_models(*given)


def reconfigured(folder: Path, **entries: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **entries}))


def folder_in_its_place(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (
        lambda folder: os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2),
        f"{WEIGHTS} is truncated",
    ),
    "no-json": (
        lambda folder: (folder / CONFIG).write_text("{broken"),
        f"{CONFIG} is not a sparsegen config",
    ),
    "list": (lambda folder: (folder / CONFIG).write_text("[]"), f"{CONFIG} is not a sparsegen config"),
    "text": (
        lambda folder: reconfigured(folder, evaluation="great"),
        "evaluation must be of type dict; got 'great'",
    ),
    "nan": (
        lambda folder: reconfigured(folder, evaluation={"metric": "fid", "distance": float("nan")}),
        "NaN is not a JSON number",
    ),
    "folder": (lambda folder: folder_in_its_place(folder / CONFIG), CONFIG),
    "no-synthesis": (lambda folder: (folder / SYNTHESIS).unlink(), f"{SYNTHESIS} is missing"),
    "no-onnx": (
        lambda folder: (folder / GRAPH).write_text("<html>"),
        f"{GRAPH} is truncated, corrupt or not an ONNX",
    ),
    "empty": (lambda folder: [file.unlink() for file in folder.iterdir()], CONFIG),
}


@pytest.fixture
def damaged(models, tmp_path) -> Path:
    """A folder of invalid models."""
    for name, (damage, _) in DAMAGES.items():
        damage(shutil.copytree(models / ML, tmp_path / "damaged" / name))
    return tmp_path / "damaged"


def test_a_server_skips_invalid_models_with_one_warning_each(models, damaged, tmp_path):
    shutil.copytree(models / L0, damaged / L0)
    server = start(tmp_path / "run", damaged)
    try:
        server.wait_until_ready()
        assert [model["name"] for model in json.loads(server.ask("GET", "/models")[2])["models"]] == [L0]
    finally:
        assert server.stop() == 0
    log = server.log.read_text()
    for name, (_, word) in DAMAGES.items():
        (line,) = [line for line in log.splitlines() if f"{name} is not served" in line]
        assert word in line
    assert "Traceback" not in log


def test_serve_ends_with_one_line_if_all_models_are_invalid(damaged, tmp_path):
    server = start(tmp_path / "run", damaged, [sys.executable, "-m", "sparsegen", "serve", "--port"])
    try:
        assert server.process.wait(60) == 2
    finally:
        server.stop()
    (line,) = server.log.read_text().splitlines()
    assert line.startswith("sparsegen: no models to serve")
    assert all(f"{name} is not served" in line and word in line for name, (_, word) in DAMAGES.items())


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_skipped(damaged, models):
    shutil.copytree(models / L0, damaged / L0)
    shutil.copytree(models / L0, damaged / "closed").chmod(0)
    opened, refused = open_models(damaged)
    assert list(opened) == [L0] and any(reason.startswith("closed is not served") for reason in refused)


def test_serve_ends_if_its_worker_cannot_start(models, tmp_path):
    command = [sys.executable, "-m", "sparsegen", "serve", "--port"]
    server = start(tmp_path / "run", models, command, NO_TORCH.replace("torch", "uvicorn"))
    try:
        assert server.process.wait(60) == 2
    finally:
        server.stop()
    assert "before it was ready" in server.log.read_text()
