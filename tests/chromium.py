"""A page in headless Chromium."""

import base64
import json
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from server import until

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync --hide-scrollbars"
)
AXE = Path(os.environ.get("SPARSEGEN_AXE", "node_modules/axe-core/axe.min.js"))
NEEDS_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver on the PATH"
    ),
]


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
