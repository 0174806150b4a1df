"""The exported page in headless Chromium, compared with Python's sampler on the graph and weights in the page."""

import base64
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from chromium import AXE, NEEDS_BROWSER, Page
from commands import CLI, assert_refused
from conftest import warmed
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from server import until

from sparsegen.export.runtime import OnnxSampler, open_sampler
from sparsegen.export.web import engine, page
from sparsegen.export.web.page import export_web
from sparsegen.pictures import images
from sparsegen.zoo import noise
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.spec import create_model

MODEL_FILES = ("generator.onnx", "synthesis.onnx", "generator.safetensors")
HOSTILE = "</script><script>window.broken = 1</script>"
PICTURE = "<img src=x onerror='window.broken = 2'>"


@dataclass
class Exported:
    """A page, and the sampler of the graph and weights in it."""

    path: Path
    sampler: OnnxSampler


def colorful(generator: Generator) -> Generator:
    """A small generator whose images have all colors; untrained ones are gray."""
    generator = warmed(generator)
    with torch.no_grad():
        generator.stages[0].conv.weight *= 20
    return generator


def part(text: str, name: str) -> bytes:
    (found,) = re.findall(rf'id="part-{re.escape(name)}">([^<]+)<', text)
    return gzip.decompress(base64.b64decode(found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("web")


@pytest.fixture(scope="module")
def single(folder: Path) -> Exported:
    """An unconditional model as one file."""
    return as_file(colorful(create_model("dcgan", "ml", width=8)), folder / "demo.html")


def as_file(generator: Generator, path: Path) -> Exported:
    torch.manual_seed(0)
    export_web(generator, path)
    model = path.with_suffix("")
    model.mkdir()
    for name in MODEL_FILES:
        (model / name).write_bytes(part(path.read_text("utf-8"), name))
    return Exported(path, open_sampler(model))


@pytest.fixture(scope="module")
def hosted(folder: Path) -> Iterator[tuple[str, Exported]]:
    """A model without projections and of 64 x 64 pixels as a folder, and the address of a server of it."""
    generator = colorful(create_model("dcgan", "baseline", width=8, image_size=64))
    export_web(generator, folder / "hosted")
    model = folder / "model"
    model.mkdir()
    for name in MODEL_FILES:
        (model / name).write_bytes(gzip.decompress((folder / "hosted" / f"{name}.gz").read_bytes()))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder / "hosted")))
    Thread(target=server.serve_forever, daemon=True).start()
    yield (
        f"http://127.0.0.1:{server.server_port}/",
        Exported(folder / "hosted" / "index.html", open_sampler(model)),
    )
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Page]:
    """One browser for all pages: `Demo` opens them."""
    opened = Page("", 1280, folder / "browser")
    try:
        yield opened
    finally:
        opened.driver.quit()


class Demo:
    """An exported page in the browser."""

    def __init__(self, browser: Page, address: str, fragment: str = "", offline: bool = True):
        self.browser, self.driver = browser, browser.driver
        self.driver.get("about:blank")  # a change of the fragment alone would not load the page again
        self.driver.execute_cdp_cmd("Network.enable", {})
        conditions = {"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)
        self.browser.driver.get_log("browser")
        self.driver.get(address + fragment)

    def drawn(self, link: str) -> None:
        """Waits until the images of a link are drawn."""
        script = "return [document.querySelector('#gallery').dataset.drawn, location.hash]"
        found = until(lambda: self.driver.execute_script(script), [link, link])
        assert found == [link, link], self.problem()

    def problem(self) -> str:
        return self.browser.text("#problem")

    def pixels(self, selector: str) -> np.ndarray:
        """The canvases of a selector.  Shape: uint8 (B, H, W, 3)."""
        script = "return [...document.querySelectorAll(arguments[0])].map(one => one.toDataURL())"
        sources = self.driver.execute_script(script, selector)
        files = [io.BytesIO(base64.b64decode(source.partition("base64,")[2])) for source in sources]
        return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])

    def shows(self, expected: Callable[[], np.ndarray] | np.ndarray) -> bool:
        """Whether the picture of the inspector becomes the expected one."""
        wanted = expected() if callable(expected) else expected
        return until(lambda: are_equal(self.pixels("#picture"), wanted), True)

    def set(self, selector: str, value: object, event: str = "input") -> None:
        script = (
            "const element = document.querySelector(arguments[0]); element.value = arguments[1];"
            "element.dispatchEvent(new Event(arguments[2], {bubbles: true}));"
        )
        self.driver.execute_script(script, selector, str(value), event)

    def check_quiet(self) -> None:
        """No message on the console, and nothing to scroll sideways."""
        assert self.driver.get_log("browser") == []
        wide = self.driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= self.driver.execute_script("return innerWidth")


def are_equal(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal pixels, but for one gray level in at most one of 1,000 values: another build rounds otherwise."""
    if found.shape != expected.shape:
        return False
    difference = np.abs(found.astype(int) - expected)
    return difference.max() <= 1 and (difference > 0).mean() <= 1e-3


def code_of(sampler: OnnxSampler, index: int, k: int | list[int] | None = None, seed: int = 0) -> np.ndarray:
    return sampler.run(noise.z(1, sampler.z_dim, seed, first=index), k)[1][0]


@NEEDS_BROWSER[0]
@NEEDS_BROWSER[1]
class TestBrowser:
    def test_a_file_draws_the_pixels_of_python_without_a_network(self, browser: Page, single: Exported):
        sampler = single.sampler
        demo = Demo(browser, single.path.as_uri())
        demo.drawn("#seed=0&count=16&k=2,2&image=0")
        assert are_equal(demo.pixels("#gallery canvas"), sampler.sample(16))
        assert demo.driver.title == "dcgan-8.ml" == browser.text("h1")
        assert "Γ1 keeps 2 of 8 coefficients at each position" in browser.text("#sparsity")
        assert browser.text("#license") == "The license of the weights is not recorded."
        density = np.mean([np.count_nonzero(code_of(sampler, index)) for index in range(16)]) / (8 * 16 * 16)
        assert f"density {density:.3f}" == browser.text("#density-1")

        demo.set("#k-1", 1)
        demo.drawn("#seed=0&count=16&k=1,2&image=0")
        assert are_equal(demo.pixels("#gallery canvas"), sampler.sample(16, k=[1, 2]))
        assert browser.text("#k-1-value") == "1 of 8 per position"
        demo.set("#seed", 2**64 - 1)
        demo.set("#count", 20, "change")
        demo.drawn(f"#seed={2**64 - 1}&count=20&k=1,2&image=0")
        assert are_equal(demo.pixels("#gallery canvas"), sampler.sample(20, 2**64 - 1, [1, 2]))
        demo.set("#seed", 2**64)
        assert "0 to 2^64 - 1" in browser.text("#seed-problem")
        assert browser.hosts() == set()
        demo.check_quiet()

    def test_a_link_restores_the_settings(self, browser: Page, single: Exported):
        demo = Demo(browser, single.path.as_uri(), "#seed=7&count=3&k=3,1&image=2")
        demo.drawn("#seed=7&count=3&k=3,1&image=2")
        assert are_equal(demo.pixels("#gallery canvas"), single.sampler.sample(3, 7, [3, 1]))
        assert demo.shows(single.sampler.sample(3, 7, [3, 1])[2:])
        demo.driver.execute_script("location.hash = '#seed=-1&count=2&class=1&k=9'")
        demo.drawn("#seed=0&count=2&k=2,2&image=0")
        for refused in ("seed=-1", "class=1", "k=9", "1 to 8"):
            assert refused in demo.problem()

    def test_atoms_are_switched_off_and_coefficients_painted(
        self, browser: Page, single: Exported, tmp_path: Path
    ):
        sampler, side = single.sampler, 16
        behavior = {"behavior": "allow", "downloadPath": str(tmp_path)}
        browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behavior)
        demo = Demo(browser, single.path.as_uri())
        demo.drawn("#seed=0&count=16&k=2,2&image=0")
        browser.click("#gallery button", 5)
        drawn = sampler.sample(6)[5:]
        assert demo.shows(drawn)
        demo.set("#k-1", 4)
        demo.drawn("#seed=0&count=16&k=4,2&image=5")

        code = code_of(sampler, 5, [4, 2])
        energy = (code[0] ** 2).sum((1, 2)) * (sampler.dictionary() ** 2).sum((1, 2, 3))
        strongest = int(energy.argmax())
        assert browser.each(".atom", "dataset")[0]["atom"] == str(strongest)
        share = f"{energy.max() / energy.sum():.1%}".replace("%", " %")
        assert share in browser.each(".atom button", "innerText")[0]
        browser.click(".atom input", 0)
        code[:, strongest] = 0
        expected = partial(lambda: images.to_uint8(sampler.synthesize(code)))
        assert demo.shows(expected)
        assert (expected() != drawn).any() and "pixels change by" in browser.text("#picture-note")

        browser.click(".atom button", 2)
        atom = int(browser.each(".atom", "dataset")[2]["atom"])
        board = browser.all("#map")[0]
        center = "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})"
        browser.driver.execute_script(center, board)
        cell = board.size["width"] / side
        drag = ActionChains(browser.driver)
        drag.move_to_element_with_offset(board, -2 * cell + cell / 2, -3 * cell + cell / 2).click_and_hold()
        drag.move_by_offset(4 * cell, 0).release().perform()
        strength = float(browser.each("#strength", "value")[0])
        code[0, atom, 5:7, 6:12] = strength  # a brush of 2 x 2, from column 6 to 10
        assert strength > 0 and demo.shows(expected)
        browser.screenshot("painted")
        top = "return document.querySelector('#save-npy').getBoundingClientRect().top"
        before = browser.driver.execute_script(top)
        ActionChains(browser.driver).move_to_element(browser.all("#inspector-title")[0]).perform()
        assert "Point at" in browser.text("#cursor")
        assert browser.driver.execute_script(top) == before

        # The keys go on from the cell that was clicked, in row 5 and column 6.
        board.send_keys(*[Keys.ARROW_DOWN] * 3, Keys.ARROW_RIGHT, " ")
        code[0, atom, 8:10, 7:9] = strength
        assert demo.shows(expected)
        assert "Row 8, column 7" in browser.text("#cursor")
        board.send_keys(Keys.DELETE)
        code[0, atom, 8:10, 7:9] = 0
        assert demo.shows(expected)

        name = "dcgan-8.ml-seed0-k4-k2"
        for button in ("#save-picture", "#save-npy", "#save-json", "#save-grid"):
            browser.click(button)
        files = [f"{name}-5-edited.{suffix}" for suffix in ("png", "npy", "json")] + [f"{name}.png"]
        assert until(lambda: all((tmp_path / file).exists() for file in files), True)
        saved = np.load(tmp_path / files[1])
        np.testing.assert_allclose(saved, code, rtol=1e-4, atol=1e-5)
        assert (saved != 0).tolist() == (code != 0).tolist()
        assert are_equal(np.asarray(Image.open(tmp_path / files[0]).convert("RGB"))[None], expected())
        entries = json.loads((tmp_path / files[2]).read_text())
        assert (entries["model"], entries["seed"], entries["k"]) == ("dcgan-8.ml", "0", [4, 2])
        again = np.zeros_like(saved)
        for channel, row, column, value in entries["entries"]:
            again[0, channel, row, column] = value
        np.testing.assert_array_equal(again, saved)
        grid = images.grid(sampler.sample(16, k=[4, 2])).repeat(2, 0).repeat(2, 1)
        assert are_equal(np.asarray(Image.open(tmp_path / files[3]).convert("RGB")), grid)

        browser.click("#undo")
        browser.click("#undo")
        code[0, atom] = code_of(sampler, 5, [4, 2])[0, atom]
        code[0, atom, 5:7, 6:12] = strength
        assert demo.shows(expected)
        browser.click("#reset")
        assert demo.shows(sampler.sample(6, k=[4, 2])[5:])
        demo.check_quiet()

    def test_hostile_names_are_text(
        self, browser: Page, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        generator = warmed(create_model("cgan", "l0", width=8))
        names = ["<!--<script>", PICTURE, *map(str, range(7)), "日本 & 'it's'"]
        generator.config = {"class_names": names, "license": HOSTILE[:60]}
        describe = page.describe
        monkeypatch.setattr(page, "describe", lambda *given: describe(*given) | {"name": HOSTILE})
        exported = as_file(generator, tmp_path / "hostile.html")
        demo = Demo(browser, exported.path.as_uri())
        demo.drawn("#seed=0&count=16&k=512&image=0")
        assert are_equal(demo.pixels("#gallery canvas"), exported.sampler.sample(16))
        assert browser.text("h1") == demo.driver.title == HOSTILE
        assert browser.text("#license") == f"License of the weights: {HOSTILE[:60]}"
        drawn = [names[label] for label in noise.labels(16, 10, 0, names=names)]
        assert browser.each("#gallery button", "title") == [
            f"image {i}, {name}" for i, name in enumerate(drawn)
        ]
        assert browser.each("#class option", "textContent") == ["any", *names]
        demo.set("#class", 9, "change")
        demo.set("#k-1", 300)
        demo.drawn("#seed=0&count=16&class=9&k=300&image=0")
        assert are_equal(demo.pixels("#gallery canvas"), exported.sampler.sample(16, k=300, labels=names[9]))
        assert browser.text("#k-1-value") == "300 of 2,048 per image"
        assert demo.driver.execute_script("return window.broken") is None
        demo.check_quiet()

    def test_a_folder_draws_larger_images_from_a_server(self, browser: Page, hosted: tuple[str, Exported]):
        address, exported = hosted
        demo = Demo(browser, address, offline=False)
        demo.drawn("#seed=0&count=16&image=0")
        assert demo.pixels("#gallery canvas").shape == (16, 64, 64, 3)
        assert are_equal(demo.pixels("#gallery canvas"), exported.sampler.sample(16))
        assert "not limited" in browser.text("#sparsity") and "Γ1 is not limited" in browser.text("#levels")
        assert browser.hosts() == {address.split("/")[2]}
        demo.check_quiet()
        Demo(browser, exported.path.as_uri())  # Chrome loads no modules from files
        assert "must come from a web server" in browser.text("#loading")

    def test_noise_and_classes_are_those_of_numpy(self, browser: Page, hosted: tuple[str, Exported]):
        Demo(browser, hosted[0], offline=False)
        script = (
            "const [seed, first, classes, done] = arguments;"
            "import('/noise.js').then(({drawNoise, drawClasses}) => done([[...drawNoise(40, 500, BigInt(seed), first)],"
            " drawClasses(40, classes, BigInt(seed), first)]))"
        )
        for seed, first, classes in (
            (0, 0, 10),
            (7, 3, 1),
            (2**32 + 5, 2**20, 1000),
            (2**64 - 1, 99_000, 3_000_000_000),
        ):
            found, drawn = browser.driver.execute_async_script(script, str(seed), first, classes)
            np.testing.assert_array_equal(
                np.array(found, np.float32), noise.z(40, 500, seed, first).reshape(-1)
            )
            expected = [np.random.default_rng([seed, first + i, 1]).integers(classes) for i in range(40)]
            assert drawn == expected  # the last is rejected by Lemire's method about every third time

    @pytest.mark.parametrize(
        ("removed", "name"),
        [
            ("delete window.DecompressionStream", "DecompressionStream"),
            ("WebAssembly.validate = () => false", "WebAssembly with SIMD"),
            ("delete window.WebAssembly", "WebAssembly"),
        ],
    )
    def test_a_browser_without_a_feature_gets_a_sentence(
        self, browser: Page, single: Exported, removed: str, name: str
    ):
        command = "Page.addScriptToEvaluateOnNewDocument"
        script = browser.driver.execute_cdp_cmd(command, {"source": removed})
        try:
            demo = Demo(browser, single.path.as_uri())
            assert until(lambda: demo.problem().startswith(f"This browser has no {name},"), True)
            assert "Use a current" in demo.problem() and browser.text("h1") == "dcgan-8.ml"
            assert not browser.all("#samples")[0].is_displayed()
            demo.check_quiet()
        finally:
            browser.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)

    @pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core: npm install --no-save axe-core")
    @pytest.mark.parametrize("width", [1280, 390])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_no_violation(self, browser: Page, single: Exported, width: int, scheme: str):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        try:
            demo = Demo(browser, single.path.as_uri())
            demo.drawn("#seed=0&count=16&k=2,2&image=0")
            browser.click("details summary")
            browser.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text("utf-8")})
            run = "axe.run().then(found => arguments[0](found.violations.map(one => [one.id, one.nodes[0].html])))"
            assert browser.driver.execute_async_script(f"const done = arguments[0]; {run}") == []
            demo.check_quiet()
        finally:
            browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
            browser.driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride", metrics | {"width": browser.width}
            )


def test_the_engine_is_the_pinned_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    parts = engine.read_engine()
    assert parts.keys() == {"runtime.mjs", "runtime.wasm", "notices.txt"}
    assert gzip.decompress(parts["runtime.wasm"]).startswith(b"\0asm")
    assert f"ONNX Runtime Web v{engine.VERSION}".encode() in gzip.decompress(parts["runtime.mjs"])
    assert engine.read_license().startswith("MIT License")

    monkeypatch.setattr(engine, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"runtime.mjs.gz is missing .* install sparsegen again"):
        export_web(create_model("dcgan", "ml", width=8), tmp_path / "x.html")
    for name, content in parts.items():
        (tmp_path / f"{name}.gz").write_bytes(content)
    (tmp_path / "runtime.wasm.gz").write_bytes(gzip.compress(b"\0asm"))
    with pytest.raises(ValueError, match=r"runtime.wasm is not that of onnxruntime-web"):
        engine.read_engine()


def test_the_command_writes_a_file_or_a_folder(
    sparsegen: CLI, folder: Path, single: Exported, tmp_path: Path
):
    model = colorful(create_model("dcgan", "ml", width=8)).save_pretrained(tmp_path / "dcgan-8.ml")
    done = sparsegen("export", model, "--out", tmp_path / "demo.html", "--license", "mit")
    assert done.returncode == 0, done.stderr
    assert "verified against torch" in done.stdout and "open the file in a browser" in done.stdout
    assert '"license": "mit"' in (tmp_path / "demo.html").read_text("utf-8")
    done = sparsegen("export", model, "--out", tmp_path / "site", "--web")
    assert done.returncode == 0 and "http.server" in done.stdout, done.stderr
    files = {path.name for path in (tmp_path / "site").iterdir()}
    assert {"index.html", "worker.js", "runtime.wasm.gz", "generator.safetensors.gz"} <= files
    page.check_folder(tmp_path / "site")  # may be replaced
    (tmp_path / "site" / "notes.txt").write_text("mine")
    for arguments, says in (
        (("--out", "demo.html", "--synthesis"), "--synthesis"),
        (("--out", "demo.html", "--discriminator"), "--discriminator"),
        (("--out", "site", "--web", "--discriminator"), "--discriminator"),
        (("--out", "demo.onnx", "--web"), "an .html file or a folder"),
        (("--out", tmp_path / "site", "--web"), "holds other files"),
        (("--out", model, "--web"), "holds other files"),
        (("--out", "/proc/x/demo.html"), "/proc"),
    ):
        assert_refused(sparsegen("export", model, *arguments), says)
    assert (tmp_path / "site" / "notes.txt").read_text() == "mine"


def test_the_limits_of_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_ml: Generator):
    monkeypatch.setattr(page, "LARGEST_FILE", 10**6)
    with pytest.raises(ValueError, match="export to a folder instead"):
        export_web(tiny_ml, tmp_path / "x.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        export_web(tiny_ml, tmp_path / "folder.html")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file"):
        export_web(tiny_ml, tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.html"]


def test_the_scripts_are_joined_without_their_imports():
    for module in (page.MAIN, page.WORKER):
        script = page.join(module)
        assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
        assert "</script" not in script.lower() and "<!--" not in script
        names = re.findall(
            r"^(?:async )?(?:function|class|const|let) (?:\{([^}]+)\}|\[([^\]]+)\]|(\w+))", script, re.M
        )
        flat = [name for found in names for name in re.findall(r"\w+", "".join(found))]
        assert len(flat) == len(set(flat))
    assert "function drawNoise" in page.join(page.MAIN) and "drawNoise" not in page.join(page.WORKER)
