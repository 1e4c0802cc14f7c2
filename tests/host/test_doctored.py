"""What a plan may use on a recorded host: the memory one process can have, or an error, never a guess."""

from __future__ import annotations

import pytest
from bundles import Memory, Problem, changed, load

from perilune.errors import ConfigError
from perilune.host.doctored import Doctored, doctored
from perilune.host.sysroot import Sysroot
from perilune.units import GIB


def read(name: str, **changes: str | Problem) -> Doctored:
    bundle = changed(load(name), {("file", path): text for path, text in changes.items()})
    return doctored(Sysroot(Memory(bundle)), live=False)


@pytest.mark.parametrize(
    ("name", "profile", "size", "word"),
    [
        ("reconstructed/strix-good", "strix-halo", None, "unified"),
        ("reconstructed/2.7-cap31", "strix-halo", 33_285_996_544, "cap31"),
    ],
)
def test_the_memory_is_what_one_process_can_have(name: str, profile: str, size: int | None, word: str) -> None:
    found = read(name)
    assert found.profile.name == profile
    assert word in found.says
    assert size is None or found.memory == size
    assert found.memory < 400 * GIB


def test_an_instinct_s_memory_is_the_least_that_can_be_read() -> None:
    bank = "/sys/class/kfd/kfd/topology/nodes/{}/mem_banks/0/properties"
    sizes = {2: 309_220_868_096, 3: 300_000_000_000}
    found = read("reconstructed/mi355x-good", **{
        bank.format(node): f"heap_type 1\nsize_in_bytes {size}\n" for node, size in sizes.items()
    })  # fmt: skip
    assert (found.profile.name, found.memory, found.count) == ("mi355x", 300_000_000_000, 8)
    assert "2 of 8 GPUs" in found.says


def test_vram_and_gtt_are_not_added() -> None:
    found = read("reconstructed/2.7-cap31")
    assert found.memory < 32 * GIB, "64 GiB are carved out, 31 GiB can be mapped: one process has 31"


@pytest.mark.parametrize("name", ["reconstructed/strix-good", "reconstructed/mi355x-good"])
def test_memory_that_cannot_be_read_is_an_error_with_a_way_on(name: str) -> None:
    bundle = load(name)
    banks = {key: Problem("permission denied") for key in bundle if "mem_banks" in key[1]}
    assert not any("heap_type 1" in str(text) for key, text in changed(bundle, banks).items())
    with pytest.raises(ConfigError, match="cannot be told") as caught:
        doctored(Sysroot(Memory(changed(bundle, banks))), live=False)
    assert "--device" in caught.value.fix
