"""A program that stands for an engine: a real process with a real socket that behaves, or fails in a chosen way."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import time

SAYS = {
    "memory": "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 30.00 GiB.",
    "kernel": "RuntimeError: GPU archs of ['gfx1151'] is invalid",
    "tokenizer": "ImportError: cannot import name 'bytes_to_unicode' from 'transformers'",
    "flag": "vllm: error: unrecognized arguments: --swap-space 4",
    "port": "OSError: [Errno 98] Address already in use",
    "files": "RuntimeError: hipMemCreate: out of memory (Too many open files)",
    "vocabulary": 'src/llama-vocab.cpp:3422: GGML_ASSERT(tokenizer && "Tokenizer not initialized.") failed',
    "assertion": "ggml.c:42: GGML_ASSERT(a->ne[0] == b->ne[0]) failed",
    "fault": "Memory access fault by GPU node-1 on address 0x7f. Reason: Page not present or supervisor privilege.",
}

ABORTS = ("vocabulary", "assertion")


class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def main(how: str, port: int) -> None:
    print(f"starting, {how}, with {os.environ.get('ENGINE_WORD', 'no word')}", flush=True)
    if how in SAYS:
        print(SAYS[how], flush=True)
        if how in ABORTS:
            os.abort()
        sys.exit(1)
    if how == "crash":
        print("something odd", flush=True)
        sys.exit(3)
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(600)
    if how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if how == "family":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(f"worker {child.pid}", flush=True)
    server = http.server.HTTPServer(("127.0.0.1", port), Ready)
    if how == "dies":
        server.handle_request()
        print(SAYS["memory"], flush=True)
        sys.exit(1)
    server.serve_forever()


main(sys.argv[1], int(sys.argv[sys.argv.index("--port") + 1]))
