"""A server below a path of a proxy: its own addresses, and what a browser sees through nginx."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from chromium import CHROMIUM, DRIVER, Page
from hypothesis import given
from hypothesis import strategies as st
from server import Server, free_port, start, until
from server import running_server as server  # noqa: F401 (a fixture)
from server import small_models as models  # noqa: F401 (a fixture)

from sparsegen.service.prefix import check_prefix

NGINX = shutil.which("nginx")
CONFIGURATION = """
events {}
http {
    access_log off;
    server {
        listen FRONT;
        location /images/ {
            proxy_pass http://127.0.0.1:BACK/;
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-Prefix /images;
        }
    }
}
"""


def root(server: Server, path: str = "/ui/", **headers: str) -> str:  # noqa: F811
    """The address that the page takes for that of the server."""
    answer = httpx.get(server.url + path, headers=headers)
    assert answer.status_code == 200, answer.text
    found = re.search(r'"root":"([^"]*)"', answer.text)
    assert found
    return found[1].removeprefix(server.url)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [("/images", "/images/ui"), ("/a/b-c/", "/a/b-c/ui"), ("", "/ui")]
    + [
        (bad, "/ui") for bad in ("//example.org", "/a b", "/../x", "images", "/a?b", "/" + "a" * 65, "/a" * 9)
    ],
)
def test_the_page_is_below_the_prefix_of_a_trusted_proxy_if_it_is_a_path(
    server: Server,  # noqa: F811
    prefix: str,
    expected: str,
) -> None:
    assert root(server, **{"X-Forwarded-Prefix": prefix}) == expected


def test_the_prefix_of_a_stranger_is_ignored(models: Path, tmp_path: Path) -> None:  # noqa: F811
    server = start(tmp_path / "run", models, SPARSEGEN_PROXY="10.0.0.0/8").wait_until_ready()  # noqa: F811
    try:
        assert root(server, **{"X-Forwarded-Prefix": "/images"}) == "/ui"
    finally:
        server.stop()


def test_a_server_with_a_root_path_answers_with_and_without_it(models: Path, tmp_path: Path) -> None:  # noqa: F811
    server = start(tmp_path / "run", models, SPARSEGEN_ROOT_PATH="/images/").wait_until_ready()  # noqa: F811
    try:
        assert root(server, "/images/ui/") == root(server, "/ui/") == "/images/ui"
        for path in ("/images/", "/images", "/"):
            assert httpx.get(server.url + path).headers["location"] == "ui/"
        assert httpx.get(f"{server.url}/images/models").json() == httpx.get(f"{server.url}/models").json()
        assert httpx.get(f"{server.url}/imagesmodels").status_code == 404
        assert httpx.get(f"{server.url}/images/images/models").status_code == 404
        request = {"model": "dcgan-8.ml", "count": 1, "seed": 3}
        grids = [httpx.post(f"{server.url}{base}/sample", json=request) for base in ("", "/images")]
        assert grids[0].status_code == 200 and grids[0].content == grids[1].content
        assert httpx.get(f"{server.url}/images/openapi.json").json()["servers"] == [{"url": "./"}]
    finally:
        server.stop()


@given(st.text(st.sampled_from("/abA9.-_~ ?#%\\\n"), max_size=12))
def test_a_prefix_is_refused_or_stays_on_this_site(text: str) -> None:
    try:
        prefix = check_prefix(text)
    except ValueError as error:
        assert "a root path is a path such as /images" in str(error)
        return
    assert prefix == "" or httpx.URL(f"http://host{prefix}/ui").path == f"{prefix}/ui"
    assert httpx.URL("http://host/").join(f"{prefix}/ui").host == "host"


@pytest.fixture
def below(server: Server, tmp_path: Path) -> Iterator[str]:  # noqa: F811
    """The address of the server below /images/ of an nginx."""
    port, file = free_port(), tmp_path / "nginx.conf"
    file.write_text(CONFIGURATION.replace("FRONT", str(port)).replace("BACK", str(server.port)))
    options = f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/log;"
    process = subprocess.Popen([NGINX or "", "-c", file, "-g", options])
    url = f"http://127.0.0.1:{port}/images"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/livez").status_code == 200
        except httpx.ConnectError:
            return False

    assert until(answers, True)
    yield url
    process.terminate()
    process.wait(10)


@pytest.mark.browser
@pytest.mark.skipif(not (NGINX and CHROMIUM and DRIVER), reason="nginx, chromium or chromedriver is missing")
def test_the_page_and_the_docs_work_below_a_path(below: str, tmp_path: Path) -> None:
    page = Page(below, 1280, tmp_path)
    try:
        page.driver.get(f"{below}/")
        assert until(lambda: len(page.pictures("#gallery")), 16) == 16
        assert page.driver.current_url.startswith(f"{below}/ui/")
        drawn = page.pictures("#gallery")
        page.click("#dice")
        assert until(lambda: page.pictures("#gallery") != drawn, True)
        page.click("#calls button")
        assert until(lambda: f"{below}/sample" in page.text("#curl"), True)
        page.driver.get(f"{below}/docs")
        assert until(lambda: "/sample" in page.text("#swagger-ui"), True)
        severe = [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert severe == []
    finally:
        page.driver.quit()
