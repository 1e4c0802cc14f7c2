"""A real `perilune serve` as a child process, for tests that need sockets, signals and processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from perilune.builtin import model_path

KEY = "first-secret"
SECOND_KEY = "second-secret"
MODEL = "tiny"
CONTEXT = 1024
MAX_BODY = 256 * 1024
START_SECONDS = 120.0


@dataclass
class LiveServer:
    """`log` is everything the process has written."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def client(self, timeout: float = 60.0) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=timeout)

    def engine_pid(self) -> int:
        """The child that computes."""
        pid = self.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"perilune.engine.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        raise AssertionError("the server has no engine process")

    def metric(self, name: str, **labels: str) -> float:
        """One number of /metrics; 0 for a counter nothing has counted yet."""
        with self.client() as client:
            text = client.get("/metrics").raise_for_status().text
        inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
        found = re.search(rf"^{re.escape(name + (f'{{{inside}}}' if inside else ''))} (\S+)$", text, re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    def wait_idle(self, seconds: float = 60.0) -> None:
        """Until no page, slot or sequence is in use; fails after `seconds`."""
        names = ("pages_used", "slots_used", "running", "waiting", "cache_bytes_used")
        end = time.monotonic() + seconds
        while True:
            used = {name: self.metric(f"perilune_engine_{name}") for name in names}
            if not any(used.values()) and self.metric("perilune_open_sequences") == 0:
                return
            assert time.monotonic() < end, f"still in use: {used}"
            time.sleep(0.1)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait(20)


def start(
    folder: Path, *flags: str, model: Path | None = None, variables: Mapping[str, str] | None = None
) -> LiveServer:
    """Starts `perilune serve` on the built-in or another model and a free port; returns once it listens.

    `folder` takes its log. Later flags win over the ones given here.
    """
    log = folder / "serve.log"
    command = [
        *(sys.executable, "-m", "perilune", "serve", str(model or model_path())),
        *(
            "--port",
            "0",
            "--served-model-name",
            MODEL,
            "--max-context",
            str(CONTEXT),
            "--max-body-bytes",
            str(MAX_BODY),
            "--drain-seconds",
            "10",
        ),
        *("--api-key", KEY, "--api-key", SECOND_KEY, *flags),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(variables or {})}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    end = time.monotonic() + START_SECONDS
    while True:
        text = log.read_text()
        if found := re.search(r"serving .* at (http://\S+)", text):
            server = LiveServer(process, found.group(1), log)
            if _answers(server):
                return server
        assert process.poll() is None, f"the server did not start:\n{text}"
        assert time.monotonic() < end, f"the server did not start in time:\n{text}"
        time.sleep(0.1)


def _answers(server: LiveServer) -> bool:
    try:
        return httpx.get(f"{server.url}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
