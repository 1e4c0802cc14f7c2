"""A small HTTP server that plays the hub for one repository: listing, file metadata, downloads, refusals."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server offers: `files` of `repo`; other repositories are unknown, `gated` and `broken` refuse."""

    repo: str
    files: dict[str, bytes]
    url: str = ""
    requests: list[str] = field(default_factory=list)

    def downloaded(self) -> set[str]:
        """Files whose content was asked for."""
        return {line.rpartition("/")[2] for line in self.requests if line.startswith("GET") and "/resolve/" in line}

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path without its query."""
        repo = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        if repo == "some/gated":
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if repo == "some/broken":
            return 500, {}, b"{}"
        if repo != self.repo:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        rest = path.partition(repo)[2].strip("/").split("/", 2)
        if rest == [""] or rest[0] == "revision":
            if rest[1:] not in ([], ["main"], [COMMIT], ["v1"]):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            siblings = [{"rfilename": name} for name in self.files]
            return 200, {}, json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
        if rest[0] == "tree":
            return 200, {}, json.dumps([self._listed(name) for name in self.files]).encode()
        name = rest[2] if rest[0] == "resolve" else ""
        if name not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{_digest(self.files[name])}"'}, self.files[name]

    def _listed(self, name: str) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": _digest(self.files[name])}


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def serve(repo: str, folder: Path, **extra: bytes) -> Iterator[Hub]:
    """Serve the files of `folder` and `extra` ones as `repo` until the block ends."""
    hub = Hub(repo, {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} | extra)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            status, headers, body = hub.answer(self.path.partition("?")[0])
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
