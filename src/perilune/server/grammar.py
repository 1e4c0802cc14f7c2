"""Whether a constraint on the output can be served, asked of a child process before the engine sees it.

A child, because the grammar compiler needs torch, which this process never loads, and because a hostile grammar may
take for ever or crash its compiler: then the child is ended and the request gets a 400, and nothing else notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import OrderedDict

from perilune.engine.request import Grammar
from perilune.errors import RequestError, UnsupportedError

MAX_GRAMMAR_CHARS = 256 * 1024
_REMEMBERED = 256


class GrammarCheck:
    """Checks grammars one at a time; those found good are remembered.

    `check_seconds` bounds one check, `start_seconds` the child's start, which imports the compiler.
    """

    def __init__(self, check_seconds: float = 10.0, start_seconds: float = 120.0) -> None:
        self._check_seconds, self._start_seconds = check_seconds, start_seconds
        self._child: asyncio.subprocess.Process | None = None
        self._one_at_a_time = asyncio.Lock()
        self._good: OrderedDict[Grammar, None] = OrderedDict()

    async def check(self, grammar: Grammar, param: str = "response_format") -> None:
        """Raises RequestError saying what is wrong with it, UnsupportedError if no compiler is installed."""
        if grammar.kind == "json_object":
            return
        if len(grammar.text) > MAX_GRAMMAR_CHARS:
            raise RequestError(
                f"The {grammar.kind} is too long.", f"At most {MAX_GRAMMAR_CHARS} characters are read.", param=param
            )
        async with self._one_at_a_time:
            if grammar in self._good:
                self._good.move_to_end(grammar)
                return
            problem = await self._ask(grammar)
            if problem:
                raise RequestError(f"The {grammar.kind} cannot be used.", problem, param=param)
            self._good[grammar] = None
            if len(self._good) > _REMEMBERED:
                self._good.popitem(last=False)

    async def close(self) -> None:
        child, self._child = self._child, None
        if child and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def _ask(self, grammar: Grammar) -> str:
        """What the child says is wrong, or an empty string."""
        child = self._child or await self._start()
        assert child.stdin
        assert child.stdout
        try:
            async with asyncio.timeout(self._check_seconds):
                child.stdin.write(json.dumps([grammar.kind, grammar.text]).encode() + b"\n")
                await child.stdin.drain()
                answer = await child.stdout.readline()
        except TimeoutError:
            await self.close()
            return f"It took more than {self._check_seconds:g} s to compile: make it smaller."
        except OSError:
            answer = b""
        except asyncio.CancelledError:
            # The answer would be read by the next one to ask.
            await self.close()
            raise
        if not answer:
            await self.close()
            return "It breaks the grammar compiler: make it smaller or simpler."
        return str(json.loads(answer))

    async def _start(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "perilune.server.grammar_child"),
            stdin=pipe,
            stdout=pipe,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._child = child
        assert child.stdout
        try:
            async with asyncio.timeout(self._start_seconds):
                started = await child.stdout.readline()
        except BaseException as error:
            await self.close()
            if not isinstance(error, TimeoutError):
                raise
            started = b""
        if not started:
            await self.close()
            raise UnsupportedError(
                "Constrained output is not available.", "The grammar compiler did not start.", "Install xgrammar."
            )
        return child
