"""Small word problems (wordings: problems.txt), solved one equation per line and ended by `#### n`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from builtin.chat import Turn
from builtin.split import held_out

SOURCE = Path(__file__).with_name("problems.txt")

_NAMES = (
    "Anna", "Ben", "Carla", "David", "Emma", "Finn", "Greta", "Hugo", "Ida", "Jonas", "Karin", "Leo", "Mira", "Noah",
    "Olga", "Paul", "Rosa", "Sam", "Tina", "Victor",
)  # fmt: skip
_THINGS = (
    "apples", "books", "coins", "shells", "stamps", "marbles", "pencils", "cards", "eggs", "flowers", "stones", "cakes",
    "tickets", "stickers", "buttons", "nuts", "toys", "plums",
)  # fmt: skip
_HOLDERS = ("boxes", "bags", "baskets", "jars", "drawers", "shelves")

_GAIN = (
    "find",
    "buy",
    "get",
    "win",
    "make",
    "receive",
    "earn",
    "borrow",
    "save",
    "bake",
    "order",
    "catch",
    "count",
    "bring",
)
_LOSE = (
    "loses", "gives away", "sells", "drops", "spends", "uses", "breaks", "eats", "hides", "returns", "forgets", "burns",
    "mails away", "puts away", "takes out", "lends out", "leaves behind", "hands out", "uses up",
)  # fmt: skip

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """One kind of problem, the wordings trained on and the wordings held out."""

    name: str
    draw: Callable[[Random], Numbers]
    solve: Callable[[Numbers], list[str]]
    wordings: tuple[str, ...]
    held_out: tuple[str, ...]


def _add(rng: Random) -> Numbers:
    return rng.randint(2, 60), rng.randint(2, 40)


def _sub(rng: Random) -> Numbers:
    a = rng.randint(5, 99)
    return a, rng.randint(1, a - 1)


def _mul(rng: Random) -> Numbers:
    return rng.randint(2, 10), rng.randint(2, 10)


def _add_sub(rng: Random) -> Numbers:
    a, b = _add(rng)
    return a, b, rng.randint(1, a + b - 1)


def _add_add(rng: Random) -> Numbers:
    return rng.randint(2, 40), rng.randint(2, 30), rng.randint(2, 29)


def _sub_add(rng: Random) -> Numbers:
    a, b = _sub(rng)
    return a, b, rng.randint(1, min(40, 99 - a + b))


def _mul_add(rng: Random) -> Numbers:
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return a, b, rng.randint(1, min(30, 99 - a * b))


def _mul_sub(rng: Random) -> Numbers:
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return a, b, rng.randint(1, a * b - 1)


def _chain(*signs: str) -> Callable[[Numbers], list[str]]:
    """Left to right: `_chain("+", "-")` on (14, 23, 9) gives 14+23=37, 37-9=28."""

    def solve(numbers: Numbers) -> list[str]:
        value, lines = numbers[0], []
        for sign, operand in zip(signs, numbers[1:], strict=True):
            result = value + operand if sign == "+" else value - operand if sign == "-" else value * operand
            lines.append(f"{value}{sign}{operand}={result}")
            value = result
        return lines

    return solve


def _div_add(rng: Random) -> Numbers:
    return rng.randint(2, 10), rng.randint(2, 10), rng.randint(1, 40)


def _share(numbers: Numbers) -> list[str]:
    a, b = numbers
    return [f"{a * b}/{a}={b}"]


def _share_add(numbers: Numbers) -> list[str]:
    a, b, c = numbers
    return [f"{a * b}/{a}={b}", f"{b}+{c}={b + c}"]


_KINDS: dict[str, tuple[Callable[[Random], Numbers], Callable[[Numbers], list[str]]]] = {
    "add": (_add, _chain("+")),
    "sub": (_sub, _chain("-")),
    "mul": (_mul, _chain("*")),
    "div": (_mul, _share),
    "div_add": (_div_add, _share_add),
    "add_sub": (_add_sub, _chain("+", "-")),
    "sub_add": (_sub_add, _chain("-", "+")),
    "add_add": (_add_add, _chain("+", "+")),
    "mul_add": (_mul_add, _chain("*", "+")),
    "mul_sub": (_mul_sub, _chain("*", "-")),
}


def _families() -> tuple[Family, ...]:
    found = []
    for block in SOURCE.read_text().split("\n@ ")[1:]:
        name, *lines = block.strip().splitlines()
        worded, unseen = (tuple(line[3:] for line in lines if line[0] == mark) for mark in "WH")
        found.append(Family(name, *_KINDS[name], worded, unseen))
    return tuple(found)


FAMILIES = _families()

_DRILLS = ("What is {}?", "Calculate {}.", "How much is {}?", "{}", "Compute {}.")


def answer(lines: list[str]) -> str:
    """The equations, one per line, then `####` and the last result."""
    return "\n".join([*lines, f"#### {lines[-1].split('=')[1]}"])


def _numbers(rng: Random, family: Family, *, test: bool) -> Numbers:
    """One in eight number tuples of a family is for tests only, in every wording."""
    while True:
        numbers = family.draw(rng)
        if held_out(f"{family.name} {numbers}", 8) == test:
            return numbers


def _worded(rng: Random, family: Family, wording: str, numbers: Numbers) -> Turn:
    n, m, o = rng.sample(_NAMES, 3)
    product = numbers[0] * numbers[1]
    gains = rng.choice(_GAIN)
    gain, lose = ("catches" if gains == "catch" else f"{gains}s"), rng.choice(_LOSE)
    things = {"t": rng.choice(_THINGS), "h": rng.choice(_HOLDERS), "product": product}
    text = wording.format(*numbers, n=n, m=m, o=o, gain=gain, gains=gains, lose=lose, **things)
    return Turn(text, answer(family.solve(numbers)), family.name)


def turn(rng: Random) -> Turn:
    """A training problem: a word problem, or now and then the bare sum of one."""
    family = rng.choice(FAMILIES)
    numbers = _numbers(rng, family, test=False)
    if rng.random() < 0.25:
        return drill(rng, family, numbers)
    return _worded(rng, family, rng.choice(family.wordings), numbers)


def drill(rng: Random, family: Family, numbers: Numbers) -> Turn:
    """ "What is 14 + 23?", with the answer in the form of the word problems."""
    lines = family.solve(numbers)
    sign = next(c for c in lines[0] if not c.isdigit())
    left = lines[0].split("=")[0].replace(sign, f" {sign} " if rng.random() < 0.7 else sign)
    return Turn(rng.choice(_DRILLS).format(left), answer(lines[:1]), "drill")


def table(rng: Random, count: int) -> list[tuple[str, str]]:
    """`count` bare sums, as ("14+23=", "37")."""
    found = []
    for _ in range(count):
        family = rng.choice(FAMILIES)
        left, right = rng.choice(family.solve(_numbers(rng, family, test=False))).split("=")
        found.append((f"{left}=", right))
    return found


def sample(rng: Random, *, new_wording: bool) -> Turn:
    """A test: held-out numbers, in a wording that was trained on or in one that was not."""
    family = rng.choice(FAMILIES)
    numbers = _numbers(rng, family, test=True)
    wordings = family.held_out if new_wording else family.wordings
    return _worded(rng, family, rng.choice(wordings), numbers)


def result(text: str) -> str | None:
    """What stands after the last `####`, or None."""
    _, mark, tail = text.rpartition("####")
    return tail.strip() if mark else None
