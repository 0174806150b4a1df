import base64
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import fader
import numpy as np
import pytest
from PIL import Image
from server import Server, running_server, small_models, start, until  # noqa: F401 (two are fixtures)

from sparsegen.export.runtime import open_sampler

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver on the PATH"
    ),
]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync --hide-scrollbars"
)


class Page:
    """The page in a headless browser of a given width."""

    def __init__(self, url: str, width: int, folder: Path):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS.split(), f"--window-size={width},1000", f"--user-data-dir={folder / 'profile'}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.url, self.width, self.folder = url, width, folder
        self.driver = webdriver.Chrome(options, Service(DRIVER))
        metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def click(self, selector: str, place: int = 0) -> None:
        until(lambda: len(self.all(selector)) > place, True)
        element = self.all(selector)[place]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def each(self, selector: str, what: str) -> list:
        """A property of all matching elements, read in one step, because the page may replace elements meanwhile."""
        script = "return [...document.querySelectorAll(arguments[0])].map(element => element[arguments[1]])"
        return self.driver.execute_script(script, selector, what)

    def pictures(self, selector: str) -> list[str]:
        return self.each(f"{selector} img", "src")

    def text(self, selector: str) -> str:
        return ",".join(self.each(selector, "innerText"))

    def slide(self, selector: str, value: int) -> None:
        """Moves a slider, with the events of a browser."""
        self.driver.execute_script(
            "const slider = document.querySelector(arguments[0]); slider.value = arguments[1];"
            "slider.dispatchEvent(new Event('input', {bubbles: true}));",
            f"{selector} input[type=range]",
            value,
        )

    def screenshot(self, name: str) -> None:
        height = self.driver.execute_script("return document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": self.width, "height": height, "scale": 1}
        shot = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
        )
        for folder in filter(None, (self.folder, os.environ.get("SPARSEGEN_SCREENSHOTS"))):
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{name}-{self.width}.png").write_bytes(base64.b64decode(shot["data"]))

    def hosts(self) -> set[str]:
        """All hosts that the page has requested."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
        addresses = [
            urlsplit(params["request"]["url"]) for params in sent if params["documentURL"].startswith("http")
        ]
        return {address.netloc for address in addresses if address.scheme not in ("data", "blob")}


@pytest.fixture(params=[1280, 400])
def page(request, server, tmp_path):
    page = Page(server.url, request.param, tmp_path)
    try:
        page.driver.get(f"{server.url}/")
        until(lambda: len(page.pictures("#atoms")) > 0, True)
        yield page
    finally:
        page.driver.quit()


def decoded(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))))


def test_a_visitor_changes_k_and_inspects_an_image(page, server):
    assert (
        page.driver.current_url.partition("#")[0] == f"{server.url}/ui/" and page.driver.title == "sparsegen"
    )
    drawn = page.pictures("#gallery")
    assert len(drawn) == 16

    page.slide("#k1", 1)
    assert until(lambda: page.pictures("#gallery") != drawn, True)
    assert until(lambda: "allows 1 of 8" in page.text("#facts"), True)
    expected = np.load(io.BytesIO(server.sample(model="dcgan-8.ml", k=1, format="npy")))
    np.testing.assert_array_equal([decoded(source) for source in page.pictures("#gallery")], expected)

    page.click("#apart input")
    assert until(lambda: page.all("#k2 input[type=range]") != [], True)
    assert until(lambda: "needle of Γ1;" in page.text("#k1"), True)
    page.slide("#k2", 8)
    assert until(lambda: "allows 8 of 8" in page.text("#facts"), True)

    page.click("#gallery .tile", 5)
    fifth = page.pictures("#gallery")[5]
    assert until(lambda: page.pictures("#inside")[0] == fifth, True)
    assert page.all("#loss img") == []
    page.click("#atoms .atom", 0)
    assert until(lambda: len(page.pictures("#loss")), 3) == 3
    before, after, difference = page.pictures("#loss")
    assert before == fifth and after != before and np.ptp(decoded(difference).astype(int)) > 0
    page.screenshot("x-ray")
    page.click("#atoms .atom", 0)
    assert until(lambda: page.all("#loss img"), []) == []

    wide = page.driver.execute_script("return document.documentElement.scrollWidth")
    assert wide <= page.width  # nothing to scroll sideways
    assert [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert page.hosts() == {f"127.0.0.1:{server.port}"}


def choose(page: Page, model: str, box: str = "#model") -> None:
    def visible() -> list:  # the list fades in; transparent elements have no text
        return [option for option in page.all("[role=option]") if model in option.text]

    page.driver.execute_script("document.activeElement.blur()")  # the list opens when it is entered
    until(lambda: page.all("[role=option]"), [])
    page.click(f"{box} input")
    until(lambda: len(visible()), 1)
    visible()[0].click()


def test_a_new_seed_draws_new_images_and_the_range_of_k_follows_the_model(page, server):
    drawn = page.pictures("#gallery")
    page.click("#dice")
    assert until(lambda: page.pictures("#gallery") != drawn, True)

    choose(page, "dcgan-8.l0")
    assert until(lambda: "allows 512 of 2,048 per code" in page.text("#facts"), True)
    page.slide("#k1", 300)
    assert until(lambda: "allows 300 of 2,048 per code" in page.text("#facts"), True)

    choose(page, "dcgan-8.baseline")
    assert until(lambda: "codes without a constraint" in page.text("#head"), True)
    assert until(lambda: [slider for slider in page.all("#k1") if slider.is_displayed()], []) == []
    assert until(lambda: "not limited in this model" in page.text("#facts"), True)
    page.click("#calls button")
    assert until(lambda: "dcgan-8.baseline" in page.text("#python"), True)
    assert until(lambda: f"{server.url}/sample" in page.text("#curl"), True)
    page.screenshot("baseline")
    assert [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def pick(page: Page, selector: str, text: str) -> None:
    """Selects from a list by typing."""
    from selenium.webdriver.common.keys import Keys

    field = page.all(f"{selector} input")[0]
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
    field.click()
    selected = "return getSelection().toString() === arguments[0].value"
    assert until(lambda: page.driver.execute_script(selected, field), True)
    for _ in range(3):  # a busy browser may lose a key
        field.send_keys(Keys.CONTROL, "a", Keys.NULL, text)
        if (found := until(lambda: page.each("[role=option]", "innerText"), [text], 20)) == [text]:
            break
    assert found == [text]
    field.send_keys("\n")


def test_a_visitor_chooses_a_class_and_compares_regularizers(page, server):
    def drawn() -> list[np.ndarray]:
        return [decoded(source) for source in page.pictures("#gallery")]

    def over_http(**request: object) -> np.ndarray:
        return np.load(io.BytesIO(server.sample(format="npy", **request)))

    def shows(expected: np.ndarray) -> bool:
        return until(lambda: np.array_equal(drawn(), expected), True)

    def visible(selector: str) -> bool:
        return any(page.each(selector, "offsetHeight"))

    assert visible("#column") and not visible("#class")
    page.screenshot("unconditional")
    pick(page, "#model", "sagan-8.ml · 10 classes")
    assert until(lambda: visible("#class"), True) and not visible("#column")
    assert shows(over_http(model="sagan-8.ml"))

    pick(page, "#class", "cat")
    assert shows(over_http(model="sagan-8.ml", labels="cat"))
    assert page.each("#gallery .tile", "title") == ["cat"] * 16
    page.slide("#k1", 8)
    cats = over_http(model="sagan-8.ml", labels=3, k=8)
    assert shows(cats)
    page.click("#gallery .tile", 5)
    assert until(lambda: np.array_equal(decoded(page.pictures("#inside")[0]), cats[5]), True)
    assert "The image, cat" in page.text("#inside")
    page.click("#atoms .atom", 0)
    assert until(lambda: len(page.pictures("#loss")), 3) == 3
    page.screenshot("conditional")
    pick(page, "#class", "any")
    assert shows(over_http(model="sagan-8.ml", k=8))

    pick(page, "#model", "dcgan-8.ml")
    assert until(lambda: visible("#column"), True) and not visible("#class")
    assert shows(over_http(model="dcgan-8.ml"))
    page.click("#column input", 1)
    assert shows(over_http(model="dcgan-8.l0"))
    assert until(lambda: page.each("#model input", "value")[:1], ["dcgan-8.l0"]) == ["dcgan-8.l0"]
    assert until(lambda: "allows 512 of 2,048" in page.text("#facts"), True)
    page.click("#column input", 0)
    assert shows(over_http(model="dcgan-8.baseline"))

    wide = page.driver.execute_script("return document.documentElement.scrollWidth")
    assert wide <= page.width  # nothing to scroll sideways
    assert [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def saved(folder: Path, name: str) -> np.ndarray | None:
    path = folder / name
    return np.asarray(Image.open(path).convert("RGB")) if path.exists() else None


def test_a_visitor_encodes_a_picture_and_switches_an_atom_off(page, server):
    page.driver.get(f"{server.url}/ui/?#encode")
    page.driver.get_log("browser")  # discards what leaving the first page has aborted
    choose(page, "dcgan-8.ml", "#encode_model")
    page.click("#encode_examples .tile", 3)
    assert until(lambda: len(page.pictures("#encoded")), 3) == 3
    given, found, difference = page.pictures("#encoded")
    assert decoded(given).shape == (32, 32, 3) and np.ptp(decoded(difference).astype(int)) > 0
    assert "dB" in page.text("#encoded")
    sampler = open_sampler(server.models / "dcgan-8.ml")
    wanted = sampler.encode(decoded(given)[None], iterations=200)
    np.testing.assert_array_equal(decoded(found), wanted.reconstruction[0])
    page.slide("#encode_k", 1)
    page.driver.execute_script(
        "document.querySelector('#encode_k input[type=range]').dispatchEvent(new Event('pointerup', {bubbles: true}))"
    )
    assert until(lambda: page.pictures("#encoded")[1] != found, True)
    page.click("#encoded_atoms .atom", 0)
    assert until(lambda: len(page.pictures("#encoded_loss")), 3) == 3
    before, after, _ = page.pictures("#encoded_loss")
    assert before == page.pictures("#encoded")[1] and after != before
    page.screenshot("encode")
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= page.width
    assert [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_link_shows_two_settings_and_saves_their_pixels(page, server, tmp_path):
    downloads = tmp_path / "downloads"
    behavior = {"behavior": "allow", "downloadPath": str(downloads)}
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behavior)
    link = "#sample&model=dcgan-8.ml&seed=7&k=3,1&count=5&image=2&with=dcgan-8.l0&with_k=300"
    page.driver.get(f"{server.url}/ui/?2{link}")
    first = {"model": "dcgan-8.ml", "seed": 7, "k": [3, 1], "count": 5}
    second = {"model": "dcgan-8.l0", "seed": 7, "k": 300, "count": 5}
    expected = np.concatenate(
        [np.load(io.BytesIO(server.sample(format="npy", **side))) for side in (first, second)]
    )
    until(lambda: len(page.pictures("#gallery")), 10)
    np.testing.assert_array_equal([decoded(source) for source in page.pictures("#gallery")], expected)
    assert until(lambda: page.driver.current_url.partition("#")[2], link[1:]) == link[1:]
    page.screenshot("compare")

    for place, (side, name) in enumerate(
        [(first, "dcgan-8.ml-seed7-k3-k1"), (second, "dcgan-8.l0-seed7-k300")]
    ):
        page.click("#share button[data-grid]", place)
        until(lambda name=name: saved(downloads, f"{name}.png") is not None, True)
        grid = np.asarray(Image.open(io.BytesIO(server.sample(**side))))
        np.testing.assert_array_equal(saved(downloads, f"{name}.png"), grid)
    page.click("#inside a.save")
    until(lambda: saved(downloads, "dcgan-8.ml-seed7-k3-k1-2.png") is not None, True)
    np.testing.assert_array_equal(saved(downloads, "dcgan-8.ml-seed7-k3-k1-2.png"), expected[2])


def test_a_model_of_the_list_is_opened(page, server):
    page.click("#models summary", 0)
    until(lambda: len(page.pictures("#models")) > 0, True)
    page.driver.execute_script(
        "document.querySelectorAll('#models details').forEach(one => { one.open = true; })"
    )
    page.click('#models button[data-model="sagan-8.ml"]')
    expected = np.load(io.BytesIO(server.sample(model="sagan-8.ml", format="npy")))
    assert until(lambda: np.array_equal([decoded(one) for one in page.pictures("#gallery")], expected), True)
    assert until(lambda: "model=sagan-8.ml" in page.driver.current_url, True)
    assert "Self-attention GAN" in page.text("#head")


@pytest.mark.parametrize("page", [400], indirect=True)
def test_the_control_for_k_and_the_images_share_the_screen_of_a_phone(page, server):
    page.driver.get(f"{server.url}/ui/?64#sample&model=dcgan-8.ml&count=64")
    until(lambda: len(page.pictures("#gallery")), 64)
    place = "const box = document.querySelector(arguments[0]).getBoundingClientRect(); return [box.top, box.bottom]"
    for tile in ("#gallery .tile:nth-child(16)", "#gallery .tile:nth-child(60)"):
        page.driver.execute_script(
            "document.querySelector(arguments[0]).scrollIntoView({block: 'center', behavior: 'instant'})",
            tile,
        )
        (top, bottom), (above, below) = (page.driver.execute_script(place, one) for one in ("#k1", tile))
        assert 0 <= top < bottom <= above < below <= 1000


AXE = Path(os.environ.get("SPARSEGEN_AXE", "node_modules/axe-core/axe.min.js"))


@pytest.mark.skipif(
    not AXE.is_file(), reason="needs axe-core: npm install --no-save axe-core, or SPARSEGEN_AXE"
)
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("tab", ["sample&model=dcgan-8.ml&with=dcgan-8.l0", "encode", "restore"])
def test_axe_finds_no_violation(page, server, tab, dark):
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    page.driver.get(f"{server.url}/ui/?{dark}{tab[:3]}#{tab}")
    shown = {"sample": "#models", "encode": "#encode_examples", "restore": "#examples"}[tab.partition("&")[0]]
    assert until(lambda: len(page.pictures(shown)) > 0, True)
    page.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text(encoding="utf-8")})
    page.driver.set_script_timeout(120)
    run = (
        "const done = arguments[0];"
        "axe.run().then(found => done(found.violations.map(one => [one.id, one.nodes[0].html])))"
    )
    assert page.driver.execute_async_script(run) == []


def test_the_api_page_loads_from_the_server_only(server, tmp_path):
    page = Page(server.url, 1280, tmp_path)
    try:
        page.driver.get(f"{server.url}/docs")
        assert until(lambda: "/sample" in page.text(".opblock-summary-path"), True)
        assert page.hosts() == {f"127.0.0.1:{server.port}"}
    finally:
        page.driver.quit()


SERVE = "import sys; from sparsegen.service.http.serve import serve; sys.exit(serve(port=int(sys.argv[1]), workers=0))"


@pytest.fixture(scope="module", name="restoring")
def server_with_a_fading_worker(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("restoring") / "run"
    server = start(folder, models, [sys.executable, "-c", SERVE])
    worker = None
    try:
        server.wait_until_ready()
        worker = fader.start(str(folder / "jobs.sqlite"))
        yield server
        assert not server.torch_imports.exists(), server.torch_imports.read_text()
        assert "Traceback" not in server.log.read_text()
    finally:
        if worker is not None:
            worker.terminate()
            worker.wait(20)
            worker.stdin.close()
        server.stop()


@pytest.fixture(params=[1200, 400])
def restore_page(request, restoring, tmp_path) -> Iterator[Page]:
    page = Page(restoring.url, request.param, tmp_path)
    try:
        page.driver.get(f"{restoring.url}/ui/#restore")
        yield page
    finally:
        page.driver.quit()


def image(page: Page, which: str) -> np.ndarray | None:
    """The pixels of a shown picture, as drawn by the browser; None if none is shown."""
    drawn = page.driver.execute_script(
        """const image = document.querySelector('#stage img.' + arguments[0]);
        if (!image || image.hidden || !image.complete || !image.naturalWidth) return null;
        const canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        canvas.getContext('2d').drawImage(image, 0, 0);
        return canvas.toDataURL();""",
        which,
    )
    return None if drawn is None else decoded(drawn)[..., :3].astype(int)


def test_a_visitor_restores_an_example_to_the_end(restore_page, restoring):
    page = restore_page
    page.click("#examples .tile", 3)
    assert until(lambda: image(page, "before") is not None, True)
    given = image(page, "before")
    assert given.shape == (80, 80, 3) and image(page, "after") is None
    page.screenshot("restore_page_picked")

    page.click("#start")
    assert until(lambda: "Restoring" in page.text("#panel"), True)
    assert until(lambda: "#restore=" in page.driver.current_url, True)
    assert until(lambda: image(page, "after") is not None, True)
    page.screenshot("restore_page_running")
    assert until(lambda: page.text("#panel").startswith("Done"), True)
    assert until(lambda: (image(page, "after") == 255 - given).all(), True)  # the result of this worker
    assert "the iterations are over" in page.text("#panel") and "best, 140" in page.text("#panel .curve")

    split = "return getComputedStyle(document.querySelector('#stage .before')).clipPath"
    middle = page.driver.execute_script(split)
    page.slide("#stage", 20)
    assert page.driver.execute_script(split) != middle
    page.screenshot("restore_page_done")

    content = page.driver.execute_async_script(
        """const done = arguments[0], reader = new FileReader();
        reader.onload = () => done(reader.result);
        fetch(document.querySelector('#stage a.get').href).then(answer => answer.blob())
            .then(blob => reader.readAsDataURL(blob));"""
    )
    np.testing.assert_array_equal(decoded(content), 255 - given)

    page.driver.refresh()
    assert until(lambda: page.text("#panel").startswith("Done"), True)
    assert until(lambda: (image(page, "before") == given).all(), True)  # stored by the tab
    wide = page.driver.execute_script("return document.documentElement.scrollWidth")
    assert wide <= page.width  # nothing to scroll sideways
    assert [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert page.hosts() == {f"127.0.0.1:{restoring.port}"}


@pytest.mark.parametrize("restore_page", [1200], indirect=True)
def test_every_example_starts_with_its_settings(restore_page, restoring):
    page = restore_page
    for place, sigma in enumerate(("25", "0", "0", "0")):
        page.driver.get(f"{restoring.url}/ui/?{place}#restore")
        page.click("#advanced button")
        page.click("#examples .tile", place)
        assert until(lambda: page.each("#sigma input", "value"), [sigma]) == [sigma]
        assert page.each("#ensemble_size input", "value") == ["the preset's"]
        assert until(lambda: image(page, "before") is not None, True)
        page.click("#start")
        assert until(lambda: page.text("#panel").startswith("Done"), True), page.text(".toast-body")
    assert [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_visitor_sees_the_picture_change_cancels_and_goes_back_to_sampling(restore_page, restoring):
    page = restore_page
    page.click("#start")
    assert until(lambda: "drop one, or pick an example" in page.text(".toast-body"), True)
    page.driver.execute_script("document.querySelector('.toast-close').click()")  # it moves while it appears
    page.click("#examples .tile", 2)
    assert until(lambda: "damaged-mask" in page.text("#mask"), True)
    page.click("#start")
    assert until(lambda: image(page, "after") is not None, True)
    first = image(page, "after")
    assert until(lambda: (image(page, "after") != first).any(), True)
    page.click("#cancel")
    assert until(lambda: page.text("#panel").startswith("Canceled"), True)
    assert until(lambda: [button.is_displayed() for button in page.all("#start")], [True]) == [True]
    job = page.driver.current_url.partition("#restore=")[2]
    assert json.loads(restoring.ask("GET", f"/restore/{job}")[2])["status"] == "canceled"
    page.screenshot("restore_page_canceled")

    page.click("#tabs [role=tab]", 0)
    assert until(lambda: len(page.pictures("#gallery")), 16) == 16
    assert "#sample" in page.driver.current_url
    assert [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"] == []
