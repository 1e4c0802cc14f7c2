"""A fleet file: what it may say, where its engines go, what starts them, and keeping them as it says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.deploy.fleet.commands import Command, command, printed, router_argv, workers_yaml
from perilune.deploy.fleet.file import FleetFile, parse_fleet
from perilune.deploy.fleet.keeper import Keeper
from perilune.deploy.fleet.placement import Host, Seat, place
from perilune.deploy.fleet.up import print_commands
from perilune.errors import ConfigError
from perilune.router.config import places
from perilune.router.run import WorkersFile

GOOD = """\
model: builtin
key_file: /etc/perilune/key
serve: {max-context: 4096, prefix-cache: true}
prefill: {count: 2, gpus: 1, serve: {prefill-chunk: 512}}
decode: {count: 3, gpus: 1, env: {OMP_NUM_THREADS: "4"}}
router: {port: 9000, flags: {api-key: [a, b], remote-from: 512}}
hosts:
  one: {address: 10.0.0.1, cpus: 8, gpus: 4}
  two: {address: "fd00::2", cpus: 8, gpus: 4}
"""
ONE, TWO = Host("one", "10.0.0.1", 8, 4), Host("two", "fd00::2", 8, 4)


@pytest.mark.parametrize(
    ("right", "wrong", "line", "says"),
    [
        ("model:", "modle:", 1, "'model'"),
        ("count: 2", "cuont: 2", 4, "'count'"),
        ("count: 2", "count: two", 4, "integer"),
        ("decode:", "decoder:", 5, "'decode'"),
        ("port: 9000", "port: 90000", 6, "65535"),
        ("gpus: 1, serve", "gpus: 1, hosts: [on], serve", 4, "'one'"),
        ("key_file: /etc/perilune/key", "# none", 1, "set key_file"),
        ("decode: {count: 3", "# decode: {count: 3", 1, "hand over to"),
        ("model: builtin", "# model", 2, "'model' is missing"),
        ("cpus: 8, gpus: 4}\n  two", "cpus: -8, gpus: 4}\n  two", 8, "greater than or equal to 0"),
    ],
)
def test_a_mistake_is_reported_with_its_line_and_what_was_meant(right: str, wrong: str, line: int, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_fleet(GOOD.replace(right, wrong, 1), "fleet.yaml")
    assert f"fleet.yaml:{line}: " in str(caught.value)
    assert says in str(caught.value)


def test_roles_are_spread_over_hosts_and_every_engine_has_ports_and_gpus_of_its_own() -> None:
    placed = place(parse_fleet(GOOD), [ONE, TWO])
    assert {name: (seat.host.name, seat.number, seat.gpus) for name, seat in placed.seats.items()} == {
        "prefill-0": ("one", 0, (0,)), "prefill-1": ("two", 0, (0,)),
        "decode-0": ("one", 1, (1,)), "decode-1": ("two", 1, (1,)), "decode-2": ("one", 2, (2,)),
    }  # fmt: skip
    assert placed.missing == {}


def test_what_has_no_room_says_what_it_needs_and_what_there_is() -> None:
    placed = place(parse_fleet(GOOD), [Host("one", "a", 2.0, 4)])
    assert sorted(placed.seats) == ["prefill-0", "prefill-1"]
    assert placed.missing["decode-0"] == "it needs 1 processors and 1 GPUs; no host has more than 0 free and 2 GPUs"
    pinned = GOOD.replace("gpus: 1, env", "gpus: 1, hosts: [two], env")
    assert place(parse_fleet(pinned), [ONE]).missing["decode-0"] == "no host of two is there"


def test_what_runs_stays_where_it_is_when_the_fleet_grows_shrinks_or_loses_a_host() -> None:
    file = parse_fleet(GOOD)
    before = place(file, [ONE, TWO]).seats
    more = place(parse_fleet(GOOD.replace("count: 3", "count: 4")), [TWO, ONE], before).seats
    assert {name: more[name] for name in before} == before
    less = place(parse_fleet(GOOD.replace("count: 2", "count: 1")), [ONE, TWO], before).seats
    assert less == {name: seat for name, seat in before.items() if name != "prefill-1"}
    alone = place(file, [ONE], before)
    assert {name: seat for name, seat in alone.seats.items() if before[name].host == ONE} == {
        name: seat for name, seat in before.items() if seat.host == ONE
    }


HOSTS = st.lists(
    st.builds(
        Host, name=st.sampled_from("abcd"), address=st.sampled_from("xy"), cpus=st.floats(0, 16), gpus=st.integers(0, 8)
    ),
    max_size=4, unique_by=lambda host: host.name,
)  # fmt: skip
GROUPS = st.fixed_dictionaries({
    "count": st.integers(0, 6), "cpus": st.floats(0, 8), "gpus": st.integers(0, 4),
    "hosts": st.none() | st.lists(st.sampled_from("abcd"), min_size=1),
})  # fmt: skip


@given(hosts=HOSTS, then=HOSTS, decode=GROUPS, workers=GROUPS)
def test_no_host_ever_gets_more_than_it_has(
    hosts: list[Host], then: list[Host], decode: dict[str, object], workers: dict[str, object]
) -> None:
    file = FleetFile.model_validate({"model": "m", "decode": decode, "workers": workers})
    kept: Mapping[str, Seat] = {}
    for there in (hosts, then):
        placed = place(file, there, kept)
        kept = placed.seats
        assert len(placed.seats) + len(placed.missing) == sum(group.count for group in file.groups.values())
        ports = [(seat.host.address, seat.number) for seat in placed.seats.values()]
        assert len(ports) == len(set(ports))  # two containers of one machine share its address
        for host in there:
            seats = [seat for seat in placed.seats.values() if seat.host.name == host.name]
            gpus = [gpu for seat in seats for gpu in seat.gpus]
            assert sum(file.groups[seat.role].cpus for seat in seats) <= host.cpus + 1e-9
            assert len(gpus) == len(set(gpus))
            assert set(gpus) <= set(range(host.gpus))
            allowed = [file.groups[seat.role].hosts for seat in seats]
            assert all(names is None or host.name in names for names in allowed)


def test_the_words_that_start_an_engine_and_the_router() -> None:
    file = parse_fleet(GOOD)
    seats = place(file, [ONE, TWO]).seats
    made = command(file, seats["decode-1"], gpus=True)
    assert made.line == (
        "CUDA_VISIBLE_DEVICES=1 OMP_NUM_THREADS=4 perilune serve builtin --host fd00::2 --port 8102 --role decode "
        "--pd-key-file /etc/perilune/key --pd-host fd00::2 --pd-port 18102 --max-context 4096 --prefix-cache"
    )
    assert made.url == "http://[fd00::2]:8102"
    assert router_argv(file, "w.yaml") == [
        "perilune", "route", "--host", "127.0.0.1", "--port", "9000", "--pd-key-file", "/etc/perilune/key",
        "--workers-file", "w.yaml", "--api-key", "a", "--api-key", "b", "--remote-from", "512",
    ]  # fmt: skip


def test_without_ray_the_file_prints_what_to_start_on_each_host() -> None:
    lines: list[str] = []
    assert print_commands(parse_fleet(GOOD), lines.append) == 0
    assert [line for line in lines if line.startswith("#")] == [
        "# on one (10.0.0.1)",
        "# on two (fd00::2)",
        "# the router",
    ]
    assert lines[-1].count("--prefill ") == 2
    assert lines[-1].count("--decode ") == 3
    few = parse_fleet(GOOD.replace("gpus: 4", "gpus: 1"))
    assert list(printed(few, place(few, [Host("one", "10.0.0.1", 8, 1)])))[-1].startswith("# decode-2 has no place: ")
    with pytest.raises(ConfigError, match="names no hosts"):
        print_commands(parse_fleet(GOOD.partition("hosts:\n")[0]), lines.append)


def test_the_router_reads_the_file_the_keeper_writes(tmp_path: Path) -> None:
    file = tmp_path / "workers.yaml"
    file.write_text(
        workers_yaml({"prefill-0": "http://a:1", "decode-0": "http://[fd00::2]:2", "decode-1": "http://c:3"})
    )
    assert WorkersFile.read(str(file)) == places(["http://a:1"], ["http://[fd00::2]:2", "http://c:3"])
    file.write_text(workers_yaml({}))
    assert WorkersFile.read(str(file)) == ()


class Paper:
    """A launcher that writes down what it was asked."""

    def __init__(self, *hosts: Host) -> None:
        self.there: list[Host] = list(hosts)
        self.up: dict[str, Command] = {}
        self.dead: dict[str, str] = {}
        self.draining: set[str] = set()

    def hosts(self) -> Sequence[Host]:
        return self.there

    def start(self, seat: Seat, made: Command) -> None:
        assert made.name not in self.up
        self.up[made.name] = made

    def ended(self) -> Mapping[str, str]:
        return self.dead

    def stop(self, name: str) -> None:
        del self.up[name]
        self.dead.pop(name, None)

    def ending(self) -> Collection[str]:
        return self.draining


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Keeper, Paper, Path, list[str]]:
    path, said = tmp_path / "fleet.yaml", []
    path.write_text(GOOD)
    paper = Paper(ONE, TWO)
    return Keeper(path, paper, tmp_path / "workers.yaml", said.append), paper, tmp_path, said


def urls(folder: Path) -> int:
    return len(WorkersFile.read(str(folder / "workers.yaml")))


def test_the_file_scales_the_fleet_up_and_down_and_the_router_hears_first(
    kept: tuple[Keeper, Paper, Path, list[str]],
) -> None:
    keeper, paper, folder, said = kept
    keeper.step(0.0)
    assert (len(paper.up), urls(folder)) == (5, 5)
    (folder / "fleet.yaml").write_text(GOOD.replace("count: 3", "count: 10"))
    keeper.step(1.0)
    assert (len(paper.up), urls(folder)) == (8, 8)
    assert sum("has no place" in line for line in said) == 4
    keeper.step(2.0)
    assert sum("has no place" in line for line in said) == 4  # said once
    (folder / "fleet.yaml").write_text(GOOD.replace("count: 3", "count: 01"))
    keeper.step(3.0)
    assert sorted(paper.up) == ["decode-0", "prefill-0", "prefill-1"]
    assert urls(folder) == 3
    (folder / "fleet.yaml").write_text("modle: x\n")
    keeper.step(4.0)
    assert len(paper.up) == 3
    assert "The fleet stays as it is." in said[-1]
    keeper.close()
    assert (paper.up, urls(folder)) == ({}, 0)


def test_what_dies_is_started_again_at_once_and_then_ever_later(kept: tuple[Keeper, Paper, Path, list[str]]) -> None:
    keeper, paper, _, said = kept
    keeper.step(0.0)
    paper.dead = {"decode-1": "status 1, no memory"}
    keeper.step(1.0)
    assert "decode-1" in paper.up
    assert "decode-1 ended: status 1, no memory" in said
    paper.dead = {"decode-1": "again"}
    keeper.step(2.0)
    assert "decode-1" not in paper.up
    keeper.step(3.9)
    assert "decode-1" not in paper.up
    keeper.step(4.0)
    assert "decode-1" in paper.up
    paper.dead = {"decode-1": "after an hour"}
    keeper.step(4000.0)
    assert "decode-1" in paper.up  # as the first time


def test_engines_of_a_lost_host_move_to_where_there_is_room(kept: tuple[Keeper, Paper, Path, list[str]]) -> None:
    keeper, paper, folder, said = kept
    keeper.step(0.0)
    paper.there = [ONE]
    keeper.step(1.0)
    assert all("10.0.0.1" in made.url for made in paper.up.values())
    assert sum(line.startswith("moving ") for line in said) == 1  # the other found no place
    assert len(paper.up) == urls(folder) == 4
    paper.there = [ONE, TWO]
    keeper.step(2.0)
    assert len(paper.up) == 5


def test_an_engine_is_not_started_anew_before_the_old_one_has_gone(kept: tuple[Keeper, Paper, Path, list[str]]) -> None:
    keeper, paper, folder, said = kept
    keeper.step(0.0)
    paper.draining = {f"prefill-{number}" for number in range(2)}
    (folder / "fleet.yaml").write_text(GOOD.replace("prefill-chunk: 512", "prefill-chunk: 1024"))
    keeper.step(1.0)
    assert sorted(paper.up) == ["decode-0", "decode-1", "decode-2"]
    paper.draining = set()
    keeper.step(2.0)
    assert "1024" in paper.up["prefill-0"].argv
    assert "starting prefill-0 anew: the file changed" in said
