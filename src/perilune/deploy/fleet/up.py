"""`perilune fleet up` as a process: a launcher, the keeper's steps, and the router as a child, until a signal."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from perilune.deploy.fleet.commands import printed, router_argv
from perilune.deploy.fleet.file import FleetFile
from perilune.deploy.fleet.keeper import Keeper, Launcher, Say
from perilune.deploy.fleet.placement import Host, place
from perilune.deploy.fleet.process import Process
from perilune.errors import ConfigError

STEP_SECONDS = 1.0
_PAUSE_STEPS = 5


class Nodes(Launcher, Protocol):
    """A launcher that is closed at the end, after everything was stopped."""

    def close(self) -> None: ...


def print_commands(file: FleetFile, say: Say) -> int:
    """The same fleet for people: commands per host. Raises ConfigError without `hosts` in the file."""
    if not file.hosts:
        raise ConfigError(
            "The fleet file names no hosts.", "Without Ray nobody else knows them.",
            "Write hosts: {NAME: {address: …, cpus: …, gpus: …}}, or install perilune[ray].",
        )  # fmt: skip
    hosts = [Host(name, part.address, part.cpus, part.gpus) for name, part in file.hosts.items()]
    placement = place(file, hosts)
    for line in printed(file, placement):
        say(line)
    return 1 if placement.missing else 0


def up(path: Path, nodes: Callable[[FleetFile], Nodes], say: Say, file: FleetFile) -> int:
    """Keeps the fleet up until SIGINT or SIGTERM, then stops it; returns 0. Raises ConfigError if it cannot start."""
    launcher, stop = nodes(file), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())  # after the launcher: Ray sets its own
    with tempfile.TemporaryDirectory(prefix="perilune-fleet-") as folder:
        keeper = Keeper(path, launcher, Path(folder) / "workers.yaml", say)
        router: Process | None = None
        pause = 0
        try:
            while not stop.is_set():
                keeper.step()
                if router is not None and (why := router.ended()) is not None:
                    say(f"the router ended: {why}")
                    router, pause = None, _PAUSE_STEPS
                if router is None and pause == 0:
                    router = _router(keeper.file, folder, say)
                pause = max(0, pause - 1)
                stop.wait(STEP_SECONDS)
            say("stopping: the router first, then the engines; open requests are finished")
        finally:
            if router is not None:
                router.stop()
            keeper.close()
            launcher.close()
    return 0


def _router(file: FleetFile, folder: str, say: Say) -> Process:
    argv = router_argv(file, f"{folder}/workers.yaml")
    made = Process(argv, {}, Path(file.logs).expanduser() / "router.log")
    say(f"routing at http://{file.router.host}:{file.router.port}")
    return made
