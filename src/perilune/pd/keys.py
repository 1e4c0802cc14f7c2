"""One secret per cluster, and what is derived from it: a key per purpose, so that none can stand in for another."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path
from typing import Literal, get_args

from perilune.errors import ConfigError

Purpose = Literal["ticket", "control", "data", "http"]
MAC_BYTES = 32
MINIMUM = 16
KEY_VARIABLE = "PERILUNE_PD_KEY"
STAMP_HEADER = "X-Perilune-Cluster"


class ClusterKey:
    """Raises ConfigError for a secret shorter than 16 bytes. Shows nothing of itself when printed."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < MINIMUM:
            raise ConfigError(
                f"The cluster key has {len(secret)} bytes.",
                f"Whoever guesses it can read every prompt's cache; {MINIMUM} bytes are the least.",
                "Make one with `openssl rand -hex 32` and give the same to every engine and router.",
            )
        self._keys = {
            purpose: hmac.digest(secret, f"perilune pd 1 {purpose}".encode(), "sha256") for purpose in get_args(Purpose)
        }

    @classmethod
    def load(cls, file: str | None = None) -> ClusterKey | None:
        """From `file`, else from the environment's PERILUNE_PD_KEY; None if neither is set. Never from a command line,
        which every process of the host can read. Raises ConfigError for a file that cannot be read, or too short a key.
        """
        if file is None:
            secret = os.environ.get(KEY_VARIABLE)
            return None if secret is None else cls(secret.strip().encode())
        try:
            return cls(Path(file).expanduser().read_bytes().strip())
        except OSError as error:
            raise ConfigError(f"The cluster key in {file} cannot be read.", f"{error.strerror}.") from error

    def sign(self, purpose: Purpose, message: bytes) -> bytes:
        """HMAC-SHA256, 32 bytes."""
        return hmac.digest(self._keys[purpose], message, "sha256")

    def verify(self, purpose: Purpose, message: bytes, mac: bytes) -> bool:
        """In constant time."""
        return hmac.compare_digest(self.sign(purpose, message), mac)

    def stamp(self, method: str, path: str, body: bytes = b"") -> str:
        """The value of STAMP_HEADER by which an engine knows a request as the cluster's own."""
        digest = hashlib.sha256(body).hexdigest()
        return f"{digest}.{self.sign('http', f'{method} {path} {digest}'.encode()).hex()}"

    def stamped(self, method: str, path: str, stamp: str) -> str | None:
        """The hex SHA-256 that the body must have; None for a stamp that this cluster did not make."""
        digest, _, mac = stamp.partition(".")
        right = self.sign("http", f"{method} {path} {digest}".encode()).hex()
        return digest if hmac.compare_digest(right.encode(), mac.encode()) else None

    @property
    def name(self) -> str:
        """Eight hex digits by which two people can see whether they have the same key."""
        return hashlib.sha256(self.sign("control", b"name")).hexdigest()[:8]
