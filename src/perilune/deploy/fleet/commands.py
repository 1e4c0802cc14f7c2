"""A fleet's words: what starts each engine and the router, for a launcher or to be typed on each host."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from perilune.deploy.fleet.file import Flags, FleetFile
from perilune.deploy.fleet.placement import Placement, Seat


@dataclass(frozen=True)
class Command:
    """One engine, ready to be started. `environment` is set on top of the host's own."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    url: str

    @property
    def line(self) -> str:
        """For a shell."""
        set_first = [f"{name}={shlex.quote(value)}" for name, value in sorted(self.environment.items())]
        return " ".join([*set_first, shlex.join(self.argv)])


def command(file: FleetFile, seat: Seat, *, gpus: bool = False) -> Command:
    """What starts the engine of `seat`. `gpus`: say which, if nobody else does."""
    group, port = file.groups[seat.role], file.first_port + seat.number
    words = [*file.program, "serve", file.model, "--host", seat.host.address, "--port", str(port)]
    if file.key_file is not None:
        role = "both" if seat.role == "workers" else seat.role
        words += ["--role", role, "--pd-key-file", file.key_file]
        words += ["--pd-host", seat.host.address, "--pd-port", str(file.first_pd_port + seat.number)]
    words += flag_words({**file.serve, **group.serve})
    environment = {**file.env, **group.env}
    if gpus and seat.gpus:
        environment[file.gpu_variable] = ",".join(map(str, seat.gpus))
    return Command(seat.name, tuple(words), environment, f"http://{_bracketed(seat.host.address)}:{port}")


def router_argv(file: FleetFile, workers_file: str | None = None, urls: Mapping[str, str] | None = None) -> list[str]:
    """The router's words: with a file that will name engines, or with their URLs by name."""
    words = [*file.program, "route", "--host", file.router.host, "--port", str(file.router.port)]
    if file.key_file is not None:
        words += ["--pd-key-file", file.key_file]
    if workers_file is not None:
        words += ["--workers-file", workers_file]
    for name, url in (urls or {}).items():
        words += [f"--{name.partition('-')[0]}", url]
    return words + flag_words(file.router.flags)


def workers_yaml(urls: Mapping[str, str]) -> str:
    """The file a router reads, from URLs by engine name."""
    lists: dict[str, list[str]] = {}
    for name, url in urls.items():
        lists.setdefault(name.partition("-")[0], []).append(url)
    return "".join(f"{role}: [{', '.join(map(repr, each))}]\n" for role, each in sorted(lists.items())) or "{}\n"


def printed(file: FleetFile, placement: Placement) -> Iterator[str]:
    """Commands per host, then the router's; engines without a place last."""
    by_host: dict[str, list[Seat]] = {}
    for seat in placement.seats.values():
        by_host.setdefault(seat.host.name, []).append(seat)
    urls = {}
    for name, seats in by_host.items():
        yield f"# on {name} ({seats[0].host.address})"
        for seat in sorted(seats, key=lambda seat: seat.number):
            made = command(file, seat, gpus=True)
            urls[seat.name] = made.url
            yield made.line
        yield ""
    yield "# the router"
    ordered = {name: urls[name] for name in placement.seats}
    yield shlex.join(router_argv(file, urls=ordered))
    for name, why in placement.missing.items():
        yield f"# {name} has no place: {why}"


def flag_words(flags: Flags) -> list[str]:
    """`{max-context: 4096, prefix-cache: true}` as words."""
    words: list[str] = []
    for name, value in flags.items():
        for each in value if isinstance(value, list) else [value]:
            if each is not False:
                words += [f"--{name}"] if each is True else [f"--{name}", str(each)]
    return words


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
