"""Hosts made of network namespaces: what a fleet file prints is started on each and works across them. As root."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from perilune.builtin import model_path
from perilune.deploy.fleet.file import parse_fleet
from perilune.deploy.fleet.up import print_commands

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("ip") is None or os.geteuid() != 0, reason="network namespaces need root and ip(8)"
    ),
]

SECONDS = 120.0
NET = "10.213.77"
HOSTS = {"p": f"{NET}.1", "d": f"{NET}.2", "router": f"{NET}.3"}
FLEET = f"""\
model: {model_path()}
key_file: KEY
program: [{sys.executable}, -m, perilune]
serve: {{served-model-name: tiny, max-context: 1024, dtype: float32, pd-transports: tcp, threads: 1}}
prefill: {{count: 1, hosts: [p]}}
decode: {{count: 1, hosts: [d]}}
router: {{host: {HOSTS["router"]}, flags: {{remote-from: 64, health-seconds: 0.2}}}}
hosts:
  p: {{address: {HOSTS["p"]}, cpus: 1}}
  d: {{address: {HOSTS["d"]}, cpus: 1}}
"""


def ip(words: str) -> None:
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {words}: {done.stderr}")


@pytest.fixture
def network() -> Iterator[None]:
    """A namespace per host, and a bridge between them that this test can reach too."""
    with contextlib.ExitStack() as undo:
        try:
            ip("link add plt-br type bridge")
            undo.callback(lambda: ip("link del plt-br"))
            ip(f"addr add {NET}.254/24 dev plt-br")
            ip("link set plt-br up")
            for name, address in HOSTS.items():
                ip(f"netns add plt-{name}")
                undo.callback(lambda name=name: ip(f"netns del plt-{name}"))
                ip(f"link add plt-{name} type veth peer name eth0 netns plt-{name}")
                ip(f"link set plt-{name} master plt-br up")
                for rest in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
                    ip(f"-n plt-{name} {rest}")
        except OSError as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield


def test_the_printed_commands_make_a_fleet_across_hosts(network: None, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a key that only tests know")
    lines: list[str] = []
    print_commands(parse_fleet(FLEET.replace("KEY", str(tmp_path / "key"))), lines.append)
    commands = dict(
        zip(("p", "d", "router"), [line for line in lines if line and not line.startswith("#")], strict=True)
    )
    children = {}
    for name, line in commands.items():
        with (tmp_path / name).open("wb") as log:
            words = ["ip", "netns", "exec", f"plt-{name}", *shlex.split(line)]
            children[name] = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    url = f"http://{HOSTS['router']}:8080"
    try:
        end = time.monotonic() + SECONDS
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if sum(row["up"] for row in httpx.get(f"{url}/workers").json()) == 2:
                    break
            assert time.monotonic() < end, {name: (tmp_path / name).read_text() for name in commands}
            time.sleep(0.2)

        def ask(text: str) -> tuple[str, str]:
            body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
            assert answer.status_code == 200, answer.text
            return answer.json()["choices"][0]["message"]["content"], answer.headers["x-perilune-route"]

        text = "Tell me about the moon. " * 30
        said, route = ask(text)
        assert "why=remote" in route
        assert "fell_back" not in route

        ip("link set plt-p down")  # the prefill host's cable is pulled
        end = time.monotonic() + SECONDS
        while sum(row["up"] for row in httpx.get(f"{url}/workers").json()) != 1:
            assert time.monotonic() < end
            time.sleep(0.1)
        again, route = ask("x " + text)
        assert "why=alone" in route
        ip("link set plt-p up")
        end = time.monotonic() + SECONDS
        while sum(row["up"] for row in httpx.get(f"{url}/workers").json()) != 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert ask(text)[0] == said
        assert again
    finally:
        for child in children.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
        for child in children.values():
            child.wait(60)
