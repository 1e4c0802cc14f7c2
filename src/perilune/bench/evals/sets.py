"""Questions with one right answer: sums in words, codes hidden in text, or a file of one's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from perilune.bench.spec.sweep import Eval
from perilune.errors import ConfigError

_NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Finn", "Greta", "Hugo", "Ida", "Jonas")
_THINGS = ("apples", "books", "coins", "shells", "stamps", "marbles", "pencils", "cards")
_PLACES = ("blue harbour", "old mill", "red tower", "stone bridge", "quiet garden", "northern gate", "cold lake")
_PEOPLE = ("keeper", "captain", "teacher", "baker", "painter", "farmer", "sailor")
_DEEDS = (
    "counted the boats",
    "opened a window",
    "read a long letter",
    "sang an old song",
    "lit a lamp",
    "went home late",
)


@dataclass(frozen=True)
class Question:
    """`answer` as it has to be found in what the model says, by `right`."""

    text: str
    answer: str


def questions(spec: Eval) -> list[Question]:
    """The set's questions; the same for the same spec. Raises ConfigError for a file that cannot be read."""
    if spec.kind == "file":
        assert spec.path is not None
        return _file(Path(spec.path))[: spec.questions]
    rng = Random(f"{spec.kind} {spec.seed}")  # noqa: S311 - questions, no secrets
    make: Callable[[Random], Question] = (
        _arithmetic if spec.kind == "arithmetic" else lambda r: _retrieval(r, spec.length, spec.depth)
    )
    return [make(rng) for _ in range(spec.questions)]


def right(kind: str, answer: str, said: str) -> bool:
    """Exact match: of the number after the last `####`, or the last number, or, for other answers, the whole text."""
    if kind == "retrieval":
        return re.search(rf"(?<!\d){re.escape(answer)}(?!\d)", said) is not None
    found = re.findall(r"####\s*(-?[\d,]*\.?\d+)", said) or re.findall(r"-?[\d,]*\.?\d+", said)
    wanted = answer.rpartition("####")[2].strip()
    if found and re.fullmatch(r"-?[\d,]*\.?\d+", wanted):
        return float(found[-1].replace(",", "")) == float(wanted.replace(",", ""))
    return said.strip() == wanted


def _arithmetic(rng: Random) -> Question:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    a, b = rng.randint(2, 40), rng.randint(2, 30)
    c = rng.randint(1, a + b - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return Question(
            f"{name} has {a} {thing} and finds {b} more. How many {thing} does {name} have now?", str(a + b)
        )
    if kind == 1:
        a, b = max(a, b) + 1, min(a, b)
        return Question(f"{name} has {a} {thing} and gives away {b}. How many {thing} are left?", str(a - b))
    return Question(
        f"{name} has {a} {thing}, finds {b} more and gives away {c}. How many {thing} does {name} have now?",
        str(a + b - c),
    )


def _retrieval(rng: Random, length: int, depth: float | None) -> Question:
    """About `length` words, with four codes in them; the one asked for lies at `depth`, else as the others anywhere."""
    places = rng.sample(_PLACES, 4)
    codes = {place: f"{rng.randrange(10_000):04d}" for place in places}
    sentences = [f"The code of the {place} is {code}." for place, code in codes.items()]
    count = sum(len(sentence.split()) for sentence in sentences)
    while count < length:
        sentences.append(f"The {rng.choice(_PEOPLE)} {' and '.join(rng.sample(_DEEDS, 2))}.")
        count += len(sentences[-1].split())
    needle = sentences[0]
    rng.shuffle(sentences)
    if depth is not None:
        sentences.remove(needle)
        sentences.insert(round(depth * len(sentences)), needle)
    return Question(f"Read this text. {' '.join(sentences)}\n\nWhat is the code of the {places[0]}?", codes[places[0]])


def _file(path: Path) -> list[Question]:
    found = []
    line = 0
    try:
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):  # noqa: B007 - the error names it
            if text.strip():
                row = json.loads(text)
                found.append(Question(str(row["question"]), str(row["answer"])))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the questions {path}.", f"{error}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}:{line}: no question.", f"{error!r}.", 'Write {"question": …, "answer": …}.'
        ) from error
    if not found:
        raise ConfigError(f"{path} has no questions.")
    return found
