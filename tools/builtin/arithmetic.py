"""Small word problems, solved one equation per line and ended by `#### n`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from builtin.chat import Turn
from builtin.split import held_out

_NAMES = (
    "Anna", "Ben", "Carla", "David", "Emma", "Finn", "Greta", "Hugo", "Ida", "Jonas", "Karin", "Leo", "Mira", "Noah",
    "Olga", "Paul", "Rosa", "Sam", "Tina", "Victor",
)  # fmt: skip
_THINGS = (
    "apples", "books", "coins", "shells", "stamps", "marbles", "pencils", "cards", "eggs", "flowers", "stones", "cakes",
    "tickets", "stickers", "buttons", "nuts", "toys", "plums",
)  # fmt: skip
_HOLDERS = ("boxes", "bags", "baskets", "jars", "drawers", "shelves")

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """One kind of problem. The last wording of each is never trained on."""

    name: str
    draw: Callable[[Random], Numbers]
    solve: Callable[[Numbers], list[str]]
    wordings: tuple[str, ...]


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


FAMILIES = (
    Family("add", _add, _chain("+"), (
        "{n} has {0} {t} and finds {1} more. How many {t} does {n} have now?",
        "{n} has {0} {t}. {m} gives {n} {1} more {t}. How many {t} does {n} have?",
        "There are {0} {t} on the table. {n} puts {1} more on it. How many {t} are on the table?",
        "{n} bought {0} {t} in the morning and {1} in the evening. How many {t} did {n} buy?",
        "{n} has {0} {t} and {m} has {1}. How many {t} do they have together?",
        "In a shop there are {0} {t}. Then {1} more arrive. How many {t} are in the shop?",
        "{n} had {0} {t}. After that {n} got {1} more. How many {t} are there now?",
        "{m} takes {0} {t} and {n} takes {1}. How many {t} did they take in all?",
        "{n} owns {0} {t} and buys {1} more. How many {t} does {n} own?",
        "There were {0} {t}. {1} more were added. How many {t} are there in all?",
        "{n} gets {1} {t} from {m} and already had {0}. How many {t} does {n} have now?",
        "{n} counts {0} {t}, then {1} more. How many {t} is that?",
        "{n} owns {0} {t} and gets {1} more from {m}. How many {t} does {n} own now?",
    )),
    Family("sub", _sub, _chain("-"), (
        "{n} has {0} {t} and gives {1} to {m}. How many {t} are left?",
        "There were {0} {t} in the shop. {n} bought {1}. How many {t} are left?",
        "{n} had {0} {t} and lost {1} of them. How many {t} does {n} have now?",
        "{n} has {0} {t} and {m} has {1}. How many more {t} does {n} have?",
        "Of {0} {t}, {1} are broken. How many {t} are not broken?",
        "{n} has {0} {t} and sells {1}. How many {t} does {n} still have?",
        "{n} had {0} {t}. {m} took away {1} of them. How many {t} are left?",
        "{n} owns {0} {t} but {1} of them are lost. How many {t} does {n} have?",
        "From {0} {t} {n} takes {1} away. How many {t} remain?",
        "{n} bakes {0} {t} and eats {1}. How many {t} are left?",
        "There are {0} {t} on the table. {n} takes {1} away. How many {t} remain on the table?",
        "{m} has {1} {t}. {n} has {0}. How many more {t} has {n} than {m}?",
        "{n} had {0} {t} but {1} of them were taken away. How many {t} are left?",
    )),
    Family("mul", _mul, _chain("*"), (
        "There are {0} {h} with {1} {t} each. How many {t} are there?",
        "{n} has {0} {h}. Each holds {1} {t}. How many {t} does {n} have?",
        "{n} buys {0} {h} of {1} {t}. How many {t} is that?",
        "{n} puts {1} {t} into each of {0} {h}. How many {t} does {n} need?",
        "In each of {0} {h} there are {1} {t}. How many {t} are there in all?",
        "{n} fills {0} {h}. {1} {t} go into each. How many {t} are there?",
        "{0} {h} hold {1} {t} each. How many {t} is that?",
        "There are {1} {t} in each of {0} {h}. How many {t} are in the {h}?",
        "{0} friends have {1} {t} each. How many {t} do they have together?",
        "{n} finds {1} {t} a day for {0} days. How many {t} does {n} find?",
        "{n} packs {0} {h} with {1} {t} in each. How many {t} are in all?",
        "{n} fills {0} {h} with {1} {t} each. How many {t} are in the {h}?",
    )),
    Family("div", _mul, _share, (
        "{n} shares {product} {t} equally among {0} friends. How many {t} does each friend get?",
        "{product} {t} are put into {0} {h} equally. How many {t} are in each?",
        "{n} divides {product} {t} into {0} equal parts. How many {t} are in one part?",
        "{0} children share {product} {t}. How many {t} does each child get?",
        "{n} puts {product} {t} into {0} {h}, the same number in each. How many {t} are in each?",
        "{n} divides {product} {t} equally among {0} people. How many {t} does each get?",
        "{product} {t} are shared by {0} friends. How many {t} does each friend get?",
        "{n} packs {product} {t} equally into {0} {h}. How many {t} go into each?",
        "{product} {t} are split into {0} equal parts. How many {t} is one part?",
        "{0} people split {product} {t} equally. How many {t} does each person get?",
        "{n} splits {product} {t} equally between {0} people. How many {t} does each get?",
    )),
    Family("div_add", _div_add, _share_add, (
        "{0} children share {product} {t}. {n} is one of them and finds {2} more. How many {t} does {n} have?",
        "{n} shares {product} {t} equally among {0} friends. {m} is one of them and had {2}. How many {t} has {m} now?",
        "{product} {t} are put into {0} {h} equally. {n} adds {2} {t} to one of them. How many {t} are in it?",
        "{n} divides {product} {t} into {0} equal parts, takes one and finds {2} more. How many {t} does {n} have?",
        "{product} {t} are shared by {0} friends. {n} gets one part and {2} more. How many {t} does {n} have now?",
        "{n} splits {product} {t} into {0} equal parts. {m} takes one part and {2} more. How many {t} does {m} take?",
    )),
    Family("add_sub", _add_sub, _chain("+", "-"), (
        "{n} has {0} {t}. {n} finds {1} more and gives {2} to {m}. How many {t} does {n} have now?",
        "{n} had {0} {t}, bought {1} more and lost {2}. How many {t} are left?",
        "There are {0} {t} in the shop. {1} more arrive and {2} are sold. How many {t} are left?",
        "{n} has {0} {t} and {m} has {1}. Together they sell {2}. How many {t} are left?",
        "{n} has {0} {t} and gets {1} more. Then {n} gives away {2}. How many {t} remain?",
        "There are {0} {t} on the table. {n} adds {1} and takes away {2}. How many {t} are left?",
        "{n} owns {0} {t}, finds {1} more and sells {2}. How many {t} does {n} own now?",
        "{n} bought {0} {t} and then {1} more. {n} ate {2}. How many {t} remain?",
        "{n} gets {1} {t} from {m} and already had {0}. Then {n} loses {2}. How many {t} are left?",
        "To {0} {t} {n} adds {1}. Then {2} are sold. How many {t} remain?",
        "{n} gets {1} {t} to the {0} already there, then gives away {2}. How many {t} remain?",
    )),
    Family("sub_add", _sub_add, _chain("-", "+"), (
        "{n} has {0} {t}. {n} gives {1} to {m} and then finds {2} more. How many {t} does {n} have now?",
        "{n} had {0} {t}, lost {1} and bought {2} more. How many {t} does {n} have?",
        "There were {0} {t} in the shop. {1} were sold and {2} more arrived. How many {t} are there now?",
        "{n} owns {0} {t}. {n} sells {1} and later finds {2}. How many {t} does {n} own now?",
        "Of {0} {t} {n} gives away {1}. Later {n} buys {2} more. How many {t} are there?",
        "There are {0} {t} on the table. {n} takes {1} away and puts {2} on it. How many {t} are there now?",
        "{n} had {0} {t} and ate {1}. Then {m} gave {n} {2} more. How many {t} does {n} have?",
        "{n} loses {1} of {0} {t} and gets {2} more from {m}. How many {t} does {n} have now?",
        "{n} has {0} {t}, sells {1} and gets {2}. How many {t} does {n} have?",
        "{n} sells {1} of {0} {t} and later gets {2} more. How many {t} does {n} have?",
    )),
    Family("add_add", _add_add, _chain("+", "+"), (
        "{n} has {0} {t}, {m} has {1} and {o} has {2}. How many {t} do they have together?",
        "{n} found {0} {t} on Monday, {1} on Tuesday and {2} on Sunday. How many {t} did {n} find?",
        "There are {0}, {1} and {2} {t} in three {h}. How many {t} are there?",
        "{n} has {0} {t}. {m} gives {n} {1} and {o} gives {n} {2}. How many {t} does {n} have?",
        "{n} finds {0} {t}, then {1}, then {2}. How many {t} does {n} find in all?",
        "{n} puts {0}, {1} and {2} {t} on the table. How many {t} are on the table?",
        "{n} buys {0} {t}, {m} buys {1} and {o} buys {2}. How many {t} did they buy in all?",
        "There were {0} {t}. {1} and then {2} more arrived. How many {t} are there now?",
        "{n} had {0} {t}, then got {1} more and then another {2}. How many {t} does {n} have in all?",
        "{n} bought {0} {t}, then {1} and then {2} more. How many {t} did {n} buy in all?",
    )),
    Family("mul_add", _mul_add, _chain("*", "+"), (
        "{n} has {0} {h} with {1} {t} each, and {2} more {t}. How many {t} does {n} have?",
        "There are {1} {t} in each of {0} {h}. {n} adds {2} {t}. How many {t} are there now?",
        "{n} buys {0} {h} of {1} {t} and finds {2} more. How many {t} does {n} have?",
        "{0} {h} hold {1} {t} each and {2} more {t} are on the table. How many {t} are there in all?",
        "{n} fills {0} {h} with {1} {t} each and then finds {2} more {t}. How many {t} are there?",
        "{n} packs {0} {h} with {1} {t} in each and has {2} {t} left. How many {t} is that?",
        "{0} friends have {1} {t} each. {n} has {2} more. How many {t} do they have together?",
        "In each of {0} {h} there are {1} {t}. {2} {t} are left over. How many {t} are there in all?",
        "{n} had {2} {t} left over after filling {0} {h} with {1} each. How many {t} did {n} have?",
        "{n} fills {0} {h} with {1} {t} each and has {2} {t} left over. How many {t} are there in all?",
    )),
    Family("mul_sub", _mul_sub, _chain("*", "-"), (
        "{n} has {0} {h} with {1} {t} each and gives away {2} {t}. How many {t} are left?",
        "There are {1} {t} in each of {0} {h}. {2} of them are sold. How many {t} are left?",
        "{n} buys {0} {h} of {1} {t} and loses {2}. How many {t} does {n} have?",
        "{0} {h} hold {1} {t} each. {n} takes {2} {t} away. How many {t} remain?",
        "{n} packs {0} {h} with {1} {t} in each. {m} takes {2}. How many {t} are left?",
        "In each of {0} {h} there are {1} {t}. Then {2} are lost. How many {t} remain?",
        "{n} fills {0} {h} with {1} {t} each and then eats {2}. How many {t} are left?",
        "{0} friends have {1} {t} each. Together they sell {2}. How many {t} are left?",
        "{n} has {0} {h} of {1} {t}. Then {n} gives {2} {t} to {m}. How many {t} does {n} have?",
        "{n} fills {0} {h} with {1} {t} each. Then {m} takes {2} {t}. How many {t} remain?",
    )),
)  # fmt: skip

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
    text = wording.format(*numbers, n=n, m=m, o=o, t=rng.choice(_THINGS), h=rng.choice(_HOLDERS), product=product)
    return Turn(text, answer(family.solve(numbers)), family.name)


def turn(rng: Random) -> Turn:
    """A training problem: a word problem, or now and then the bare sum of one."""
    family = rng.choice(FAMILIES)
    numbers = _numbers(rng, family, test=False)
    if rng.random() < 0.25:
        return drill(rng, family, numbers)
    return _worded(rng, family, rng.choice(family.wordings[:-1]), numbers)


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
    """A test: held-out numbers, in a wording that was trained on or in the one that was not."""
    family = rng.choice(FAMILIES)
    numbers = _numbers(rng, family, test=True)
    wording = family.wordings[-1] if new_wording else rng.choice(family.wordings[:-1])
    return _worded(rng, family, wording, numbers)


def result(text: str) -> str | None:
    """What stands after the last `####`, or None."""
    _, mark, tail = text.rpartition("####")
    return tail.strip() if mark else None
