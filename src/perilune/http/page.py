"""GET /: the page. A few files made from `web/` and shipped with the package; they carry nothing of this server.

They are answered without an API key, since a browser cannot send one before a page has asked for it; every word and
number the page then shows comes from the routes that do ask for the key.

The policy allows what the page is made of and nothing else: no other host, no inline script or style, and no text that
becomes markup but through the one sanitiser (`trusted-types`).
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import Response

PREFIX = "/page/"

_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Names stay the same from version to version, so a browser asks each time whether it has this one.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True)
class _File:
    kind: str
    body: bytes
    packed: bytes
    tag: str

    @classmethod
    def of(cls, name: str, body: bytes) -> _File:
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        return cls(_TYPES[name.rpartition(".")[2]], body, gzip.compress(body, mtime=0), tag)

    def answer(self, request: Request) -> Response:
        headers = {**_HEADERS, "ETag": self.tag}
        if self.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(self.packed, media_type=self.kind, headers={**headers, "Content-Encoding": "gzip"})
        return Response(self.body, media_type=self.kind, headers=headers)


def page_router() -> APIRouter:
    """Routes for `/` and for every file of the page."""
    router = APIRouter(include_in_schema=False)
    for entry in files("perilune.http").joinpath("assets").iterdir():
        path = "/" if entry.name == "index.html" else PREFIX + entry.name
        file = _File.of(entry.name, entry.read_bytes())
        router.add_api_route(path, file.answer, methods=["GET", "HEAD"], response_model=None)
    return router


def is_page(path: str) -> bool:
    """Whether `path` is one of the page's own files."""
    return path == "/" or path.startswith(PREFIX)
