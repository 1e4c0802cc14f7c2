"""A fleet on a local Ray cluster of two nodes, for real: placed, answering, restarted after a kill, scaled, ended."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from perilune.builtin import model_path

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

SECONDS = 120.0
FLEET = """\
model: {model}
key_file: {folder}/key
logs: {folder}/logs
first_port: {port}
first_pd_port: {pd}
serve: {{served-model-name: tiny, max-context: 1024, dtype: float32, pd-transports: "local,tcp", threads: 1}}
prefill: {{count: 1}}
decode: {{count: {decode}}}
router: {{port: {router}, flags: {{remote-from: 64, health-seconds: 0.2}}}}
"""


def until(true: Callable[[], Any], log: Path, seconds: float = SECONDS) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.2)
    return found


def free_ports() -> Iterator[int]:
    """Blocks of ten that nobody listens on now."""
    for first in range(20_000 + secrets.randbelow(20_000) // 10 * 10, 60_000, 10):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", first)) != 0:
                yield first


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    made.add_node(num_cpus=2)
    yield made
    made.shutdown()


def test_a_fleet_on_two_nodes(cluster: Any, tmp_path: Path) -> None:
    ports = free_ports()
    values = {"folder": tmp_path, "model": model_path(), "port": next(ports), "pd": next(ports), "router": next(ports)}
    (tmp_path / "key").write_text(secrets.token_hex(32))
    file, log = tmp_path / "fleet.yaml", tmp_path / "up.log"
    file.write_text(FLEET.format(**values, decode=1))
    command = [sys.executable, "-m", "perilune", "fleet", "up", str(file), "--ray", cluster.address]
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{values['router']}"

    def workers() -> list[dict[str, Any]]:
        try:
            return [row for row in httpx.get(f"{url}/workers", timeout=5).json() if row["up"]]
        except httpx.HTTPError:
            return []

    def ask(text: str) -> tuple[str, str]:
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["message"]["content"], answer.headers["x-perilune-route"]

    try:
        until(lambda: len(workers()) == 2, log)
        text = "Tell me about the moon. " * 30
        first, route = ask("one " + text)
        assert "why=remote" in route

        (pid,) = serving(f"--port {prefill_port(log)}")
        os.kill(pid, signal.SIGKILL)
        until(lambda: "prefill-0 ended: " in log.read_text(), log)
        until(lambda: len(serving(f"--port {prefill_port(log)}")) == 1 and len(workers()) == 2, log)

        file.write_text(FLEET.format(**values, decode=2))
        until(lambda: len(workers()) == 3, log)
        file.write_text(FLEET.format(**values, decode=1))
        until(lambda: len(workers()) == 2 and "stopping decode-1" in log.read_text(), log)
        assert ask("one " + text)[0] == first
    finally:
        child.send_signal(signal.SIGTERM)
        assert child.wait(SECONDS) == 0
    assert serving(str(values["folder"])) == []


def prefill_port(log: Path) -> str:
    return re.findall(r"starting prefill-0 on \S+: http://\S+:(\d+)", log.read_text())[-1]


def serving(words: str) -> list[int]:
    """Processes of `perilune serve` with `words` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                said = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if "perilune serve" in said and words in said:
                found.append(int(entry.name))
    return found
