"""One secret per cluster, and what is derived from it: a key per purpose, so that none can stand in for another."""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

from perilune.errors import ConfigError

Purpose = Literal["ticket", "control", "data"]
MAC_BYTES = 32
MINIMUM = 16


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
            purpose: hmac.digest(secret, f"perilune pd 1 {purpose}".encode(), "sha256")
            for purpose in ("ticket", "control", "data")
        }

    def sign(self, purpose: Purpose, message: bytes) -> bytes:
        """HMAC-SHA256, 32 bytes."""
        return hmac.digest(self._keys[purpose], message, "sha256")

    def verify(self, purpose: Purpose, message: bytes, mac: bytes) -> bool:
        """In constant time."""
        return hmac.compare_digest(self.sign(purpose, message), mac)

    @property
    def name(self) -> str:
        """Eight hex digits by which two people can see whether they have the same key."""
        return hashlib.sha256(self.sign("control", b"name")).hexdigest()[:8]
