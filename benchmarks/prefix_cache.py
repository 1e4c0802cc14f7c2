"""What a prompt's known beginning saves: perilune's server, and llama.cpp's beside it, over HTTP on one model.

    python benchmarks/prefix_cache.py                                   # the built-in model
    python benchmarks/prefix_cache.py --model SLICE --gguf SLICE.gguf --llama-server PATH
    python benchmarks/prefix_cache.py --cases shared restart --json result.json

Cases: `chat`, ten turns growing to 8k tokens; `shared`, twenty requests with one beginning of 4k tokens and tails of
their own; `turn`, the second turn of a chat at 8k; `restart`, a prompt that files know of; `overhead`, prompts that
share nothing, with the cache off, on, and on with a folder. Prompts are token ids drawn by seed, the same for both
servers, and no case shares a beginning with another. Times are from the request to its first token, one request at a
time, each server with its own prompt cache as it comes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from perilune.models.hub import resolve

CASES = ("chat", "shared", "turn", "restart", "overhead")
ANSWER = 16
CONTEXT = 10240
UNEVEN = 40
"""No prompt ends on a page by chance: 64 tokens of the same prompt would be computed again where others compute 40."""
START_SECONDS = 300.0


@dataclass(frozen=True)
class Answer:
    """`first` and `last`: seconds to the first and the last token. `reused`: prompt tokens that were not computed."""

    first: float
    last: float
    tokens: list[int]
    reused: int


@dataclass
class Server:
    """A server in a process of its own, with what it has written so far in `log`."""

    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def ask(self, prompt: Sequence[int], answer: int = ANSWER) -> Answer:
        """Stream `answer` tokens after `prompt`."""
        body = self._body(list(prompt), answer)
        started, first, tokens, reused = time.perf_counter(), 0.0, list[int](), 0
        # a connection per request: a server may have closed an idle one just now
        with httpx.stream("POST", self.url + self._path, json=body, timeout=600) as response:
            if response.status_code != 200:
                raise SystemExit(f"{self.name}: {response.read().decode()}")
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                new = self._tokens(event)
                if new and not tokens:
                    first = time.perf_counter() - started
                tokens += new
                reused = max(reused, self._reused(event, len(prompt)))
        if not tokens:
            raise SystemExit(f"{self.name} answered without a token:\n{self.log.read_text()[-2000:]}")
        return Answer(first, time.perf_counter() - started, tokens, reused)

    _path = "/v1/completions"

    def _body(self, prompt: list[int], answer: int) -> dict[str, Any]:
        usage = {"include_usage": True}
        return {
            "prompt": prompt, "max_tokens": answer, "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": usage, "return_token_ids": True,
        }  # fmt: skip

    def _tokens(self, event: dict[str, Any]) -> list[int]:
        return [token for choice in event.get("choices", ()) for token in choice.get("token_ids") or ()]

    def _reused(self, event: dict[str, Any], prompt: int) -> int:
        details = (event.get("usage") or {}).get("prompt_tokens_details") or {}
        return int(details.get("cached_tokens") or 0)

    def metric(self, name: str) -> float:
        found = re.search(rf"^perilune_engine_{name} (\S+)$", httpx.get(self.url + "/metrics").text, re.MULTILINE)
        return float(found.group(1)) if found else 0.0


class LlamaServer(Server):
    """llama.cpp's own server. It says how many tokens it computed; the rest came from its cache."""

    _path = "/completion"

    def _body(self, prompt: list[int], answer: int) -> dict[str, Any]:
        return {
            "prompt": prompt, "n_predict": answer, "temperature": 0, "ignore_eos": True, "stream": True,
            "return_tokens": True, "cache_prompt": True,
        }  # fmt: skip

    def _tokens(self, event: dict[str, Any]) -> list[int]:
        return [] if event.get("stop") else list(event.get("tokens") or ())

    def _reused(self, event: dict[str, Any], prompt: int) -> int:
        computed = (event.get("timings") or {}).get("prompt_n")
        return 0 if computed is None else prompt - int(computed)


class Bench:
    """Starts servers and runs cases; `results` has what came out, by case."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model = resolve(options.model)
        self.vocab = int(json.loads((self.model / "config.json").read_text())["vocab_size"])
        self.results: dict[str, Any] = {}

    def text(self, length: int, name: str) -> list[int]:
        """`length` token ids that nobody else's name gives; away from both ends, where control tokens are."""
        draw = random.Random(name)  # noqa: S311  # nobody's secret
        return [draw.randrange(300, self.vocab - 400) for _ in range(length)]

    def scaled(self, tokens: int) -> int:
        return max(128, tokens // self.options.shrink // 64 * 64)

    @contextmanager
    def perilune(self, *flags: str) -> Iterator[Server]:
        command = [
            *(sys.executable, "-m", "perilune", "serve", str(self.model), "--port", "0"),
            *("--max-context", str(CONTEXT), "--max-running", "2"),
            *("--threads", str(self.options.threads), *flags),
        ]
        with self._running(Server, "perilune", command) as server:
            yield server

    @contextmanager
    def llama(self) -> Iterator[Server | None]:
        if self.options.llama_server is None:
            yield None
            return
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            *(str(self.options.llama_server), "-m", str(self.options.gguf), "--port", str(port)),
            *("-c", str(CONTEXT), "-np", "1", "-t", str(self.options.threads)),
        ]
        with self._running(LlamaServer, "llama.cpp", command) as server:
            yield server

    @contextmanager
    def _running(self, kind: type[Server], name: str, command: list[str]) -> Iterator[Server]:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            environment = {**os.environ, "OMP_NUM_THREADS": str(self.options.threads)}
            with log.open("wb") as output:
                process = subprocess.Popen(  # noqa: S603  # what the options name
                    command, stdout=output, stderr=subprocess.STDOUT, env=environment
                )
            server = kind(name, command, process, "", log)
            try:
                self._wait(server)
                server.ask(self.text(256, "warm up"), 2)
                yield server
            finally:
                server.stop()

    def _wait(self, server: Server) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and server.process.poll() is None:
            if found := re.search(
                r"(?:serving .* at|listening on) (http://\S+)", server.log.read_text("utf-8", "replace")
            ):
                server.url = found.group(1)
                try:
                    if httpx.get(server.url + "/health", timeout=5).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
            time.sleep(0.2)
        raise SystemExit(f"{server.name} did not start:\n{server.log.read_text('utf-8', 'replace')[-3000:]}")

    def _both(self) -> tuple[ExitStack, list[Server]]:
        stack = ExitStack()
        opened = [stack.enter_context(self.perilune()), stack.enter_context(self.llama())]
        return stack, [server for server in opened if server is not None]

    def chat(self) -> None:
        """Ten turns; each adds what the server answered and a new question."""
        stack, servers = self._both()
        with stack:
            for server in servers:
                said, turns = self.text(self.scaled(800), "chat"), list[Answer]()
                for turn in range(10):
                    if turn:
                        said = [*said, *turns[-1].tokens, *self.text(self.scaled(800) - ANSWER, f"turn {turn}")]
                    turns.append(server.ask(said))
                self._note("chat", server, turns, prompt_tokens=len(said))

    def shared(self) -> None:
        """Twenty requests, the first of them cold."""
        stack, servers = self._both()
        with stack:
            head = self.text(self.scaled(4096), "shared")
            for server in servers:
                asked = [server.ask([*head, *self.text(100, f"tail {number}")], 2) for number in range(20)]
                self._note("shared", server, asked, prompt_tokens=len(head) + 100)

    def turn(self) -> None:
        """A cold prompt, and the turn after it."""
        stack, servers = self._both()
        with stack:
            for server in servers:
                said = self.text(self.scaled(8192) + UNEVEN, "turn")
                first = server.ask(said)
                second = server.ask([*said, *first.tokens, *self.text(64, "second")])
                self._note("turn", server, [first, second], prompt_tokens=len(said), share=second.first / first.first)

    def restart(self) -> None:
        """A prompt, a new process, the prompt again. The files were just written, so the system has them in memory."""
        with tempfile.TemporaryDirectory() as folder:
            prompt = self.text(self.scaled(8192) + UNEVEN, "restart")
            with self.perilune("--cache-dir", folder) as server:
                cold = server.ask(prompt, 2)
            with self.perilune("--cache-dir", folder) as server:
                warm = server.ask(prompt, 2)
                self._note("restart", server, [cold, warm], prompt_tokens=len(prompt), share=warm.first / cold.first)

    def overhead(self) -> None:
        """Servers take turns on the same prompts; the ratio is per round, whatever the machine does meanwhile."""
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            flags = {"off": ("--no-prefix-cache",), "on": (), "folder": ("--cache-dir", folder)}
            servers = {name: stack.enter_context(self.perilune(*given)) for name, given in flags.items()}
            seconds: dict[str, list[float]] = {name: [] for name in servers}
            for number in range(self.options.rounds + 2):  # two to fill what is kept, so that every round evicts
                turn = number % len(servers)  # nobody goes twice in a row, with its weights still in the caches
                for name in [*list(servers)[turn:], *list(servers)[:turn]]:
                    answer = servers[name].ask(self.text(self.scaled(1024), f"alone {number}"), ANSWER)
                    if number >= 2:
                        seconds[name].append(answer.last)
            ratios = {
                name: statistics.median(a / b for a, b in zip(taken, seconds["off"], strict=True)) - 1
                for name, taken in seconds.items()
            }
            self.results["overhead"] = {"seconds": seconds, "median_overhead": ratios}
            counts = {name: servers[name].metric("prefix_evicted_snapshots_total") for name in ("on", "folder")}
            skipped = servers["folder"].metric("tier_skipped_prefixes_total")
            print(
                f"overhead: {', '.join(f'{name} {ratio:+.1%}' for name, ratio in ratios.items() if name != 'off')} "
                f"over {self.options.rounds} rounds of {self.scaled(1024)} + {ANSWER} tokens; states evicted {counts}, "
                f"prefixes the folder had no time for {skipped:.0f}"
            )

    def _note(self, case: str, server: Server, answers: list[Answer], **more: float) -> None:
        total = sum(answer.first for answer in answers)
        self.results.setdefault(case, {})[server.name] = {
            "seconds_to_first_token": [round(answer.first, 4) for answer in answers],
            "reused_tokens": [answer.reused for answer in answers],
            "total_seconds": round(total, 4),
            **more,
        }
        share = f", last / first {more['share']:.1%}" if "share" in more else ""
        firsts = " ".join(f"{answer.first:.2f}" for answer in answers)
        print(f"{case}: {server.name} {total:.2f} s in all{share}; each {firsts}; reused {[a.reused for a in answers]}")

    def run(self) -> None:
        for case in self.options.cases:
            getattr(self, case)()
            sys.stdout.flush()
        for case, servers in self.results.items():
            if case != "overhead" and len(servers) == 2:
                ours, theirs = servers["perilune"]["total_seconds"], servers["llama.cpp"]["total_seconds"]
                print(f"{case}: perilune takes {ours / theirs:.2f} of llama.cpp's time")
        if self.options.json:
            self.options.json.write_text(json.dumps(self.results, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin", help="a folder, a hub id, or builtin")
    parser.add_argument("--gguf", type=Path, help="the same model for llama.cpp")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server; without it there is no peer")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=10, help="of the overhead case")
    parser.add_argument("--shrink", type=int, default=1, help="divide every prompt's length by this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if (options.gguf is None) != (options.llama_server is None):
        parser.error("--gguf and --llama-server go together")
    Bench(options).run()


if __name__ == "__main__":
    main()
