"""Other sites' pages are refused unless a flag names them; programs never notice."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from perilune.errors import ConfigError
from perilune.http.origins import Origins, is_loopback
from perilune.server.config import ServerConfig

HERE = "127.0.0.1:8000"


def ask(headers: dict[str, str], *allowed: str, loopback_only: bool = True) -> int:
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("yes"), methods=["GET", "POST"])])
    app.add_middleware(Origins, allowed=allowed, loopback_only=loopback_only)
    return TestClient(app).post("/", headers={"host": HERE, **headers}).status_code


def test_a_program_that_says_nothing_of_its_origin_is_answered() -> None:
    assert ask({}) == 200


@pytest.mark.parametrize("host", ["localhost:8000", "[::1]:8000", "LOCALHOST", "box.localhost", "192.168.1.7:8000"])
def test_names_nobody_else_can_take_are_answered(host: str) -> None:
    assert ask({"host": host, "origin": f"http://{host.lower()}"}) == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:9000", "null", "http://localhost:8000", ""]
)
def test_another_sites_page_is_refused(origin: str) -> None:
    assert ask({"origin": origin}) == 403
    assert ask({"origin": origin}, loopback_only=False) == 403


def test_an_image_or_script_of_another_site_is_refused_but_a_link_leads_here() -> None:
    assert ask({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}) == 403
    assert ask({"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}) == 403
    assert ask({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}) == 200
    assert ask({"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors", "origin": f"http://{HERE}"}) == 200


def test_a_foreign_name_that_leads_to_this_machine_is_refused_where_no_key_protects() -> None:
    rebound = {"host": "evil.example:8000", "origin": "http://evil.example:8000"}
    assert ask(rebound) == 403
    assert ask(rebound, loopback_only=False) == 200


def test_an_allowed_origin_may_ask_and_so_may_a_proxy_under_its_name() -> None:
    assert ask({"origin": "https://chat.example"}, "https://chat.example") == 200
    assert ask({"origin": "https://Chat.Example"}, "https://chat.example") == 200
    assert ask({"host": "chat.example"}, "https://chat.example") == 200
    assert ask({"origin": "https://other.example"}, "https://chat.example") == 403
    assert ask({"origin": "https://any.example", "host": "any.example"}, "*") == 200


@pytest.mark.parametrize("wrong", ["chat.example", "https://chat.example/", "ftp://chat.example", "https://", ""])
def test_what_is_no_origin_is_a_config_error(wrong: str) -> None:
    with pytest.raises(ConfigError):
        ServerConfig(allowed_origins=(wrong,))


@pytest.mark.parametrize(
    ("host", "only_here"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False)],
)
def test_which_addresses_are_this_machines_own(host: str, only_here: bool) -> None:
    assert is_loopback(host) is only_here
