"""A Ray cluster as a fleet's hosts: one actor per engine, pinned to the node it was placed on, holding its process."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from perilune.deploy.fleet.commands import Command
from perilune.deploy.fleet.file import FleetFile
from perilune.deploy.fleet.placement import Host, Seat
from perilune.deploy.fleet.process import STOP_SECONDS, Process
from perilune.errors import ConfigError

_ANSWER_SECONDS = 2.0


class Holder:
    """Runs inside the actor. The process ends with it: if the node, Ray or the fleet goes, no engine is left over."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], log: str) -> None:
        self._process = Process(argv, environment, Path(log).expanduser())

    def ended(self) -> str | None:
        return self._process.ended()

    def stop(self) -> None:
        self._process.stop()


def ray_is_there() -> bool:
    """Whether the package is installed."""
    from importlib.util import find_spec

    return find_spec("ray") is not None


class RayNodes:
    """A launcher on a running cluster (`ray start --head`). Raises ConfigError if there is none at `address`."""

    def __init__(self, file: FleetFile, address: str = "auto") -> None:
        import ray

        self._ray: Any = ray
        self._file = file
        self._actors: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}
        self._stopping: dict[str, tuple[Any, Any]] = {}
        try:
            ray.init(address=address, namespace="perilune", log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"No Ray cluster answers at {address!r}.", f"{str(error).splitlines()[0]}",
                "Run `ray start --head` here and `ray start --address=…` on the others, or --print the commands.",
            ) from error  # fmt: skip

    def hosts(self) -> list[Host]:
        """Nodes that are alive, by address; two on one machine (as in tests) share it and differ by id."""
        return [
            Host(
                name=node["NodeManagerAddress"],
                address=node["NodeManagerAddress"],
                cpus=node["Resources"].get("CPU", 0.0),
                gpus=int(node["Resources"].get("GPU", 0)),
                id=node["NodeID"],
            )
            for node in sorted(self._ray.nodes(), key=lambda node: (node["NodeManagerAddress"], node["NodeID"]))
            if node["Alive"]
        ]

    def start(self, seat: Seat, made: Command) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        group = self._file.groups[seat.role]
        options = {
            "num_cpus": group.cpus,
            "num_gpus": group.gpus,
            "max_restarts": 0,
            "max_concurrency": 4,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=seat.host.id, soft=False),
        }
        log = f"{self._file.logs}/{seat.name}.log"
        actor = self._ray.remote(Holder).options(**options).remote(list(made.argv), dict(made.environment), log)
        self._actors[seat.name] = actor
        self._asked[seat.name] = actor.ended.remote()

    def ended(self) -> Mapping[str, str]:
        """An engine whose node does not answer in time counts as running; one whose node is lost has ended."""
        names = {reference: name for name, reference in self._asked.items()}
        found: dict[str, str] = {}
        if not names:
            return found
        ready, _ = self._ray.wait(list(names), num_returns=len(names), timeout=_ANSWER_SECONDS)
        for reference in ready:
            name = names[reference]
            try:
                why = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                why = f"its node or actor is lost: {str(error).splitlines()[0]}"
            if why is None:
                self._asked[name] = self._actors[name].ended.remote()
            else:
                found[name] = why
                del self._asked[name]
        return found

    def stop(self, name: str) -> None:
        actor = self._actors.pop(name, None)
        self._asked.pop(name, None)
        if actor is not None:
            self._stopping[name] = (actor, actor.stop.remote())

    def ending(self) -> Collection[str]:
        """Actors whose process has ended give their resources back here."""
        for name, (actor, reference) in list(self._stopping.items()):
            done, _ = self._ray.wait([reference], timeout=0)
            if done:
                self._ray.kill(actor)
                del self._stopping[name]
        return self._stopping.keys()

    def close(self) -> None:
        """Waits until everything that is being stopped has ended."""
        references = [reference for _, reference in self._stopping.values()]
        if references:
            self._ray.wait(references, num_returns=len(references), timeout=STOP_SECONDS + _ANSWER_SECONDS)
        for actor, _ in self._stopping.values():
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        self._ray.shutdown()
