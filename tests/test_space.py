"""`sparsegen space`: its folder, run as the Hub runs a Space, and pushed to the stand-in of the Hub."""

import ast
import http.client
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from chromium import CHROMIUM, DRIVER, Page
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from hub import Hub
from huggingface_hub import SpaceCard
from PIL import Image
from server import Server, free_port, small_models, until  # noqa: F401 (one is a fixture)

from pictures import encoded
from sparsegen.export.runtime import open_sampler
from sparsegen.pictures.images import to_uint8
from sparsegen.service.settings import ServiceSettings
from sparsegen.service.space import folder as folders
from sparsegen.service.space import server as spaces

NAMES = ["dcgan-8.ml", "sagan-8.ml"]
NO_BENTOML = """
import sys
class NoBentoML:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "bentoml":
            raise ModuleNotFoundError("No module named 'bentoml'", name="bentoml")
sys.meta_path.insert(0, NoBentoML())
"""


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "sparsegen", "space", *arguments],
        env={**os.environ, "COLUMNS": "400", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module", name="folder")
def written_folder(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("space") / "demo"
    written = command("--out", str(folder), "--models", ",".join(str(models / name) for name in NAMES))
    assert written.returncode == 0 and "2 models and the page" in written.stdout, written.stderr
    return folder


def run_space(folder: Path, home: Path, **environment: str) -> Server:
    """Starts app.py like the Hub, in a process that cannot import bentoml, with `home` as its temporary folder."""
    home.mkdir()
    (home / "python").mkdir()
    (home / "python" / "sitecustomize.py").write_text(NO_BENTOML)
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("SPARSEGEN_", "GRADIO_"))
    }
    port, log = free_port(), home / "log"
    variables = {
        **kept,
        "HOME": "/nonexistent",
        "TMPDIR": str(home),
        "PYTHONPATH": str(home / "python"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "GRADIO_SERVER_PORT": str(port),
    }
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, str(folder / "app.py")],
            cwd=folder,
            env=variables | environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    return Server(port, process, log, folder / "models", home / "torch")


def files_of(folder: Path) -> list[Path]:
    """The files except for compiled ones, which Python writes where it can."""
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


@pytest.fixture(scope="module", name="space")
def running_space(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    before = files_of(folder)
    home = tmp_path_factory.mktemp("running") / "home"
    space = run_space(folder, home, SPACE_ID="me/demo", SPACE_HOST="me-demo.hf.space")
    try:
        yield space.wait_until_ready()
        children = psutil.Process(space.process.pid).children(recursive=True)
        assert children and space.stop() == 0
        assert psutil.wait_procs(children, timeout=20)[1] == []
        log = space.log.read_text()
        assert "Traceback" not in log and "/gradio_api/file=" not in log
        assert files_of(folder) == before
        assert not list(home.glob("sparsegen-serve-*"))
    finally:
        space.stop()


@pytest.fixture(scope="module", name="client")
def client_of_the_space(space: Server) -> Iterator[Client]:
    client = Client(space.url, verbose=False)
    yield client
    client.close()


def ask(space: Server, method: str, path: str, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", space.port, timeout=60)
    try:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, b"{}" if method == "POST" else None, given)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_the_folder_has_the_front_matter_models_and_requirements(folder):
    card = SpaceCard.load(folder / "README.md").data
    assert (card.sdk, card.app_file, card.license, card.title) == (
        "gradio",
        "app.py",
        "apache-2.0",
        "sparsegen",
    )
    pins = dict(
        line.split("==") for line in (folder / "requirements.txt").read_text().splitlines() if "==" in line
    )
    assert card.sdk_version == pins["gradio"] and len(card.short_description) <= 60
    assert "torch" in pins and "onnxruntime" in pins and not {"bentoml", "onnxruntime-gpu"} & pins.keys()
    assert sorted(path.name for path in (folder / "models").iterdir()) == NAMES
    assert sorted(path.name for path in (folder / "models" / NAMES[0]).iterdir()) == sorted(folders.FILES)
    with Image.open(folder / "thumbnail.png") as thumbnail:
        assert thumbnail.format == "PNG"
    text = (folder / "README.md").read_text()
    assert all(f"`{name}`" in text for name in NAMES)


def test_everything_that_the_folder_imports_is_required(folder):
    found = set()
    for path in (folder / "sparsegen").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).partition(".")[0])
    of_pydantic, unused = (
        {"annotated_types", "pydantic_core"},
        {"bentoml", "matplotlib", "ray", "redis", "skimage", "submitit", "yaml"},
    )
    others = found - sys.stdlib_module_names - {"sparsegen"} - of_pydantic - unused
    assert others == set(folders.REQUIREMENTS)


def test_the_best_models_are_the_default():
    best = folders.best_models()
    assert len(best) == folders.BEST and best[0] == "biggan_tapered.ml.projected"


def test_sampling_gives_the_pixels_of_the_model(client, folder):
    assert len(client.predict(api_name="/sample")) == 16
    for name, given in ((NAMES[0], {"k": 2}), (NAMES[1], {"labels": "cat"})):
        files = client.predict(model=name, count=3, seed=7, api_name="/sample", **given)
        wanted = open_sampler(folder / "models" / name).sample(3, seed=7, **given)
        np.testing.assert_array_equal([np.asarray(Image.open(file)) for file in files], wanted)


def test_encoding_gives_the_code_of_the_model(client, folder):
    given = {"model": NAMES[0], "iterations": 5}
    image, codes = client.predict(api_name="/encode", **given)
    arrays = np.load(codes)
    np.testing.assert_array_equal(np.asarray(Image.open(image)), arrays["reconstruction"][0])
    made = open_sampler(folder / "models" / NAMES[0]).synthesize(arrays["gamma1"])
    np.testing.assert_array_equal(to_uint8(made), arrays["reconstruction"])


def test_a_worker_of_the_space_restores_a_picture(client, space, folder, tmp_path):
    path = tmp_path / "given.png"
    path.write_bytes(encoded(Image.new("RGB", (24, 20), (90, 20, 200))))
    restored = client.predict(image=handle_file(path), sigma=25, iterations=3, api_name="/restore")
    assert np.asarray(Image.open(restored)).shape == (20, 24, 3)
    (worker,) = [
        child
        for child in psutil.Process(space.process.pid).children()
        if "sparsegen.service.jobs.worker" in child.cmdline()
    ]
    assert worker.environ()["PYTHONPATH"].split(os.pathsep)[0] == str(folder)  # not the installed package


def test_a_restoration_that_takes_too_long_for_the_public_is_refused(client, tmp_path):
    (tmp_path / "large.png").write_bytes(encoded(Image.new("RGB", (600, 600))))
    picture = handle_file(tmp_path / "large.png")
    with pytest.raises(AppError, match="0.5"):
        client.submit(image=picture, preset="paper", api_name="/restore").result(timeout=60)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {"Host": "me-demo.hf.space"}, 200),
        ("GET", "/ui/", {}, 200),
        ("GET", "/config", {"Host": "10.0.0.7:7860"}, 200),
        ("GET", "/", {"Host": "evil.example"}, 421),
        ("GET", "/gradio_api/file=/etc/passwd", {}, 403),
        ("GET", "/ui/gradio_api/file=http://127.0.0.1/", {}, 403),
        ("GET", "/docs", {}, 404),
        ("GET", "/models", {}, 404),
        ("POST", "/sample", {}, 404),
        ("POST", "/gradio_api/call/sample", {}, 404),
        ("POST", "/gradio_api/component_server", {}, 404),
        ("GET", "/gradio_api/proxy=http://127.0.0.1/", {}, 404),
        ("POST", "/gradio_api/run/predict", {"Sec_Fetch_Site": "cross-site"}, 403),
        ("GET", "/livez", {}, 200),
        ("GET", "/favicon.ico", {}, 200),
        ("GET", "/manifest.json", {}, 200),
    ],
    ids=str,
)
def test_the_guards_of_the_server_hold(space, method, path, headers, status):
    assert ask(space, method, path, **headers)[0] == status


def test_the_hub_may_show_the_page_in_a_frame(space):
    _, headers, _ = ask(space, "GET", "/", Host="me-demo.hf.space")
    frames = "frame-ancestors 'self' https://huggingface.co https://*.hf.space"
    assert frames in headers["content-security-policy"] and headers["x-frame-options"] is None
    # The visitor's request is the navigation of a frame, which is a request of another site.
    status, *_ = ask(
        space, "GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="iframe"
    )
    assert status == 200


def test_the_proxy_of_the_hub_is_trusted(space):
    _, _, config = ask(space, "GET", "/config", Host="me-demo.hf.space", X_Forwarded_Proto="https")
    assert b'"root":"https://me-demo.hf.space/ui"' in config


def test_only_frames_may_have_a_wildcard():
    assert ServiceSettings(allow_frame=("https://*.hf.space",)).allow_frame
    for given in ({"allow_origin": ("https://*.hf.space",)}, {"allow_frame": ("https://*",)}):
        with pytest.raises(ValueError, match="takes an origin"):
            ServiceSettings(**given)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver on the PATH")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_visitor_sees_the_page_at_the_root(space, tmp_path, width):
    page = Page(space.url, width, tmp_path)
    try:
        page.driver.get(f"{space.url}/")
        assert until(lambda: len(page.pictures("#gallery")), 16) == 16
        assert until(lambda: len(page.pictures("#atoms")) > 0, True) is True
        page.click("#calls button")
        assert until(lambda: "gradio_client" in str(page.each("#client", "textContent")), True) is True
        page.screenshot("space")
        assert page.hosts() == {f"127.0.0.1:{space.port}"}
        assert [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"] == []
        page.driver.get(f"{space.url}/#restore")
        page.driver.refresh()
        page.click("#examples .tile", 3)
        page.click("#start")
        shown = "return document.querySelector('#stage img.after').src"
        assert (
            until(lambda: page.driver.execute_script(shown).startswith("data:image/png"), True, 240) is True
        )
        page.screenshot("space_restoring")
        page.click("#cancel")
        assert until(lambda: "Canceled" in page.text("#panel"), True) is True
    finally:
        page.driver.quit()


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({}, ("127.0.0.1", 7860)),
        ({"SPACE_ID": "me/demo"}, ("0.0.0.0", 7860)),
        ({"SPACE_ID": "me/demo", "GRADIO_SERVER_NAME": "::1", "GRADIO_SERVER_PORT": "80"}, ("::1", 80)),
    ],
)
def test_the_variables_of_gradio_set_the_address(environment, address):
    assert spaces.address(environment) == address


@pytest.mark.parametrize("port", ["0", "70000", "http"])
def test_an_invalid_port_is_refused(port):
    with pytest.raises(ValueError, match=f"GRADIO_SERVER_PORT must be a port from 1 to 65535; got '{port}'"):
        spaces.address({"GRADIO_SERVER_PORT": port})


def test_a_setting_of_the_operator_takes_precedence(tmp_path):
    environment = {"SPARSEGEN_JOBS_PER_CLIENT": "3", "SPACE_HOST": "a.hf.space,images.example"}
    spaces.set_environment(environment, str(tmp_path))
    settings = ServiceSettings.from_environment(environment)
    assert settings.jobs_per_client == 3 and settings.job_hours == 0.5
    assert settings.allow_host == ("a.hf.space", "images.example")
    assert settings.proxy == ("127.0.0.1", "::1")  # other private addresses are not trusted outside the Hub
    environment = {"SPACE_ID": "me/demo"}
    spaces.set_environment(environment, str(tmp_path))
    assert "10.0.0.0/8" in ServiceSettings.from_environment(environment).proxy


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --out FOLDER or --push owner/name"),
        (["--out", "{new}", "--models", "dcgan.mi"], "no model 'dcgan.mi': neither bundled"),
        (["--out", "{new}", "--models", "dcgan.ml,dcgan.ml"], "two models have the name 'dcgan.ml'"),
        (["--out", "{full}"], "is not an empty folder"),
        (["--out", "{new}", "--push", "me/a/b"], "a Space must be owner/name"),
        (["--out", "{new}", "--push", "demo"], "a Space must be owner/name"),
        (["--out", "{new}", "--push", "me/../b"], "a Space must be owner/name"),
        (
            ["--out", "{new}", "--push", "me/demo"],
            "without a token: log in with `hf auth login`, or set HF_TOKEN",
        ),
    ],
    ids=str,
)
def test_an_error_is_one_sentence_before_any_work(arguments, words, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    places = {"new": str(tmp_path / "new"), "full": str(tmp_path / "full")}
    given = [argument.format(**places) for argument in arguments]
    failed = command(*given, HF_HOME=str(tmp_path / "hub"), HF_TOKEN="")
    assert failed.returncode == 2 and words in failed.stderr, failed.stderr
    assert failed.stderr.count("\n") == 1 and not (tmp_path / "new").exists()
    assert (tmp_path / "full" / "file").read_text() == "kept"


@pytest.fixture(name="hub")
def running_hub(tmp_path: Path) -> Iterator[tuple[Hub, dict[str, str]]]:
    with Hub() as hub:
        variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub-home"), "HF_HUB_DISABLE_XET": "1"}
        yield hub, variables | {"HF_HUB_OFFLINE": "0", "HF_TOKEN": "any"}


def test_a_pushed_space_has_the_folder_and_a_second_push_replaces_its_models(hub, models, tmp_path):
    hub, variables = hub
    pushed = command("--push", "me/demo", "--models", str(models / NAMES[0]), "--private", **variables)
    assert pushed.returncode == 0 and pushed.stdout.strip() == f"{hub.url}/spaces/me/demo", pushed.stderr
    repo = hub.repos["spaces/me/demo"]
    files = repo.commits[repo.branches["main"]]
    assert (
        repo.private and {"app.py", "README.md", "requirements.txt", "sparsegen/__init__.py"} < files.keys()
    )
    card = SpaceCard(files["README.md"].decode()).data
    assert card.thumbnail == "https://huggingface.co/spaces/me/demo/resolve/main/thumbnail.png"

    out = tmp_path / "out"
    again = command("--push", "me/demo", "--out", str(out), "--models", str(models / NAMES[1]), **variables)
    assert again.returncode == 0, again.stderr
    files = repo.commits[repo.branches["main"]]
    written = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {name: content for name, content in files.items() if name != ".gitattributes"} == written

    refused = command("--push", "me/demo", "--public", **variables)
    assert refused.returncode == 2 and "is private, and the push asks for public" in refused.stderr


def test_a_space_downloads_a_model_of_the_hub(hub, models, tmp_path):
    hub, variables = hub
    hub.add("me/mine", {path.name: path.read_bytes() for path in (models / NAMES[0]).iterdir()})
    out = tmp_path / "out"
    written = command("--out", str(out), "--models", "me/mine", **variables)
    assert written.returncode == 0, written.stderr
    assert SpaceCard.load(out / "README.md").data.models == ["me/mine"] and not (out / "models").exists()
    space = run_space(out, tmp_path / "home", **variables)
    try:
        client = Client(space.wait_until_ready().url, verbose=False)
        files = client.predict(count=2, seed=3, api_name="/sample")
        client.close()
    finally:
        space.stop()
    wanted = open_sampler(models / NAMES[0]).sample(2, seed=3)
    np.testing.assert_array_equal([np.asarray(Image.open(file)) for file in files], wanted)
    assert re.fullmatch(r"mine-3-\d\d\.png", Path(files[0]).name)


def test_a_space_without_a_model_reports_it(tmp_path):
    (tmp_path / "app.py").write_text(folders.APP.format(repo_ids=[]))
    ended = run_space(tmp_path, tmp_path / "home")
    assert ended.process.wait(120) == 1
    assert "The Space cannot start: there is no model" in ended.log.read_text()
