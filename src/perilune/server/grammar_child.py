"""The child process of GrammarCheck: reads [kind, text] a line, answers with what is wrong, or an empty string."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any

# xgrammar's messages begin with a time stamp and a path of the machine it was built on.
_SOURCE_PREFIX = re.compile(r"^\[[^\]]*\]\s+\S+:\d+:\s*")

VOCABULARY = 257
"""Every byte, and the end."""


def problem_with(kind: str, text: str, compiler: Any) -> str:
    """Compiles over a vocabulary of single bytes: the same work as for a model's, and quick."""
    import xgrammar

    makers: dict[str, Callable[[str], Any]] = {
        "json_schema": xgrammar.Grammar.from_json_schema,
        "regex": xgrammar.Grammar.from_regex,
        "ebnf": xgrammar.Grammar.from_ebnf,
    }
    try:
        matcher = xgrammar.GrammarMatcher(compiler.compile_grammar(makers[kind](text)))
    except Exception as error:  # the compiler raises RuntimeError, ValueError and its own kinds
        return _SOURCE_PREFIX.sub("", str(error)).strip()[:500] or type(error).__name__
    first = xgrammar.allocate_token_bitmask(1, VOCABULARY)
    matcher.fill_next_token_bitmask(first)
    return "" if bool(first.any()) else "No text fits it, not even an empty one."


def main() -> None:
    import xgrammar

    vocabulary = [bytes([byte]) for byte in range(256)] + [b""]
    info = xgrammar.TokenizerInfo(vocabulary, vocab_size=VOCABULARY, stop_token_ids=[256])
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    print("ready", flush=True)
    for line in sys.stdin:
        kind, text = json.loads(line)
        print(json.dumps(problem_with(kind, text, compiler)), flush=True)


if __name__ == "__main__":
    main()
