"""Which engine runs on which host: pure, and the same answer for the same fleet. What runs stays where it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from perilune.deploy.fleet.file import FleetFile, Group, Role


@dataclass(frozen=True)
class Host:
    """`name` is what the file's `hosts` may say: a host's key, or with Ray a node's address. `id` is the launcher's."""

    name: str
    address: str
    cpus: float
    gpus: int = 0
    id: str = ""


@dataclass(frozen=True)
class Seat:
    """One engine's place. `number` counts engines at the host's address, for ports; `gpus` are numbers too."""

    name: str
    role: Role
    host: Host
    number: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Placement:
    """`missing` says of every engine without a seat why."""

    seats: dict[str, Seat]
    missing: dict[str, str]


class _Room:
    """What is left of one host."""

    def __init__(self, host: Host, order: int, numbers: set[int]) -> None:
        self.host, self.order, self.numbers = host, order, numbers
        self.cpus, self.gpus = host.cpus, set(range(host.gpus))
        self.roles: list[Role] = []

    def fits(self, group: Group) -> bool:
        return self.cpus >= group.cpus and len(self.gpus) >= group.gpus

    def take(self, name: str, role: Role, group: Group, kept: Seat | None = None) -> Seat:
        gpus = tuple(sorted(self.gpus)[: group.gpus]) if kept is None else kept.gpus
        number = next(n for n in range(len(self.numbers) + 1) if n not in self.numbers) if kept is None else kept.number
        self.cpus -= group.cpus
        self.gpus -= set(gpus)
        self.numbers.add(number)
        self.roles.append(role)
        return Seat(name, role, self.host, number, gpus)


def place(file: FleetFile, hosts: Sequence[Host], kept: Mapping[str, Seat] | None = None) -> Placement:
    """Every engine of `file` to a host with room for it: the one with the most GPUs left, then the fewest engines of
    its role, then the most processors. Engines in `kept` stay, if their host is there and they still fit.
    """
    # Two nodes of a cluster may be two containers of one machine, with one address.
    numbers: dict[str, set[int]] = {host.address: set() for host in hosts}
    rooms = {host.id or host.name: _Room(host, n, numbers[host.address]) for n, host in enumerate(hosts)}
    seats: dict[str, Seat] = {}
    wanted = [(f"{role}-{number}", role, group) for role, group in file.groups.items() for number in range(group.count)]
    for name, role, group in wanted:
        seat = (kept or {}).get(name)
        room = None if seat is None else rooms.get(seat.host.id or seat.host.name)
        if seat is not None and room is not None and _stays(seat, room, group):
            seats[name] = room.take(name, role, group, seat)
    missing: dict[str, str] = {}
    for name, role, group in wanted:
        if name in seats:
            continue
        fitting = [room for room in _allowed(rooms.values(), group) if room.fits(group)]
        if not fitting:
            missing[name] = _why(group, list(_allowed(rooms.values(), group)))
            continue
        best = min(fitting, key=lambda room: (-len(room.gpus), room.roles.count(role), -room.cpus, room.order))
        seats[name] = best.take(name, role, group)
    return Placement(seats, missing)


def _stays(seat: Seat, room: _Room, group: Group) -> bool:
    same = len(seat.gpus) == group.gpus and set(seat.gpus) <= room.gpus and seat.number not in room.numbers
    return same and room.fits(group) and (group.hosts is None or seat.host.name in group.hosts)


def _allowed(rooms: Iterable[_Room], group: Group) -> Iterable[_Room]:
    return [room for room in rooms if group.hosts is None or room.host.name in group.hosts]


def _why(group: Group, rooms: list[_Room]) -> str:
    if not rooms:
        return f"no host of {', '.join(group.hosts)} is there" if group.hosts else "no host is there"
    cpus, gpus = max(room.cpus for room in rooms), max(len(room.gpus) for room in rooms)
    needs = f"it needs {group.cpus:g} processors" + (f" and {group.gpus} GPUs" if group.gpus else "")
    return f"{needs}; no host has more than {cpus:g} free" + (f" and {gpus} GPUs" if group.gpus else "")
