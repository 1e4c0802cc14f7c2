"""The page as files: what a browser is sent, under which policy, and that it is what `web/` builds."""

from __future__ import annotations

import filecmp
import gzip
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import httpx
import live
import pytest
from live import KEY, LiveServer

MOST_BYTES = 150 * 1024
ASSETS = Path(str(files("perilune.http").joinpath("assets")))
WEB = Path(__file__).parents[2] / "web"


def test_the_page_and_its_parts_are_there_without_a_key_and_everything_else_is_not(server: LiveServer) -> None:
    page = httpx.get(server.url + "/")
    assert page.status_code == 200
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert name.startswith("/page/"), "nothing comes from another host"
        assert httpx.get(server.url + name).status_code == 200
    for path in ("/v1/models", "/live", "/page", "/pagex/page.js"):
        assert httpx.get(server.url + path).status_code == 401
    assert httpx.get(server.url + "/page/../v1/models").status_code == 401


def test_everything_together_is_small(server: LiveServer) -> None:
    size = 0
    for entry in ASSETS.iterdir():
        path = "/" if entry.name == "index.html" else f"/page/{entry.name}"
        with httpx.stream("GET", server.url + path, headers={"Accept-Encoding": "gzip"}) as response:
            assert response.headers["content-encoding"] == "gzip"
            packed = b"".join(response.iter_raw())
        assert gzip.decompress(packed) == entry.read_bytes()
        size += len(packed)
    assert size < MOST_BYTES


def test_a_browser_that_has_the_page_is_not_sent_it_again(server: LiveServer) -> None:
    first = httpx.get(server.url + "/page/page.js")
    assert first.headers["cache-control"] == "no-cache"
    again = httpx.get(server.url + "/page/page.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_policy_allows_nothing_inline_and_no_other_host(server: LiveServer) -> None:
    headers = httpx.get(server.url + "/").headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["img-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_without_a_page_there_is_none_and_an_allowed_site_may_use_the_rest(tmp_path: Path) -> None:
    server = live.start(tmp_path, "--no-page", "--allow-origin", "https://chat.example")
    try:
        assert httpx.get(server.url + "/").status_code == 401
        with server.client() as client:
            assert client.get("/").status_code == 404
            assert client.get("/page/page.js").status_code == 404
            models = client.get("/v1/models", headers={"Origin": "https://chat.example"})
            assert models.headers["access-control-allow-origin"] == "https://chat.example"
            assert client.get("/v1/models", headers={"Origin": "https://other.example"}).status_code == 403
        asked = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
        asked["Access-Control-Request-Headers"] = "authorization,content-type"
        before = httpx.options(server.url + "/v1/chat/completions", headers=asked)
        assert before.status_code == 200
        assert "authorization" in before.headers["access-control-allow-headers"].lower()
    finally:
        server.stop()


def test_other_sites_are_refused_by_a_real_server(server: LiveServer) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Origin": "https://evil.example"}
    answer = httpx.post(f"{server.url}/v1/chat/completions", headers=headers, json={})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "foreign_origin"
    assert "--allow-origin" in answer.json()["error"]["message"]


def _node() -> str | None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    major, minor = subprocess.run([node, "--version"], capture_output=True, text=True).stdout[1:].split(".")[:2]
    return npm if (int(major), int(minor)) >= (20, 19) else None


@pytest.mark.skipif(_node() is None, reason="needs Node 20.19 or newer and npm")
def test_the_files_are_what_the_sources_build(tmp_path: Path) -> None:
    """In a copy, so that what is committed is only looked at."""
    copy = tmp_path / "web"
    shutil.copytree(WEB, copy, ignore=shutil.ignore_patterns("node_modules"))
    npm = _node()
    assert npm is not None
    fetched = subprocess.run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=copy, capture_output=True)
    if fetched.returncode != 0:
        pytest.skip(f"the packages that build the page cannot be fetched here: {fetched.stderr.decode()[-200:]}")
    built = tmp_path / "assets"
    made = subprocess.run([npm, "run", "build", "--", "--outDir", str(built)], cwd=copy, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    names = sorted(entry.name for entry in ASSETS.iterdir())
    assert sorted(entry.name for entry in built.iterdir()) == names
    same, different, failed = filecmp.cmpfiles(ASSETS, built, names, shallow=False)
    assert (different, failed) == ([], []), "rebuild with `npm run build` in web/"
    assert same == names
