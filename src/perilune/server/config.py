"""What the HTTP server is told, in one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field

from perilune.errors import ConfigError, nearest
from perilune.http.origins import check_origins
from perilune.units import MIB

ISOLATIONS = ("none", "key")


@dataclass(frozen=True)
class ServerConfig:
    """Settings of the HTTP side; those of the engine are in EngineConfig.

    `port` 0 takes a free port. `served_model_names`: every name a request may use, the first is shown; empty means
    the model's own. `api_keys` empty means no key is asked for; `cache_isolation` "key" keeps each key's prompts from
    the others' prefix cache. `tool_parser` and `reasoning_parser`: None follows
    the model, "none" switches off. A body must arrive within
    `body_seconds`; a server asked to stop gives open requests `drain_seconds`. `page` answers `/` with one;
    `allowed_origins` are other sites whose pages may use this server, "*" for all. Raises ConfigError.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cache_isolation: str = "none"
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    max_body_bytes: int = 16 * MIB
    body_seconds: float = 60.0
    drain_seconds: float = 30.0
    page: bool = True
    allowed_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"Port {self.port} does not exist.", fix="Ports go from 0 to 65535.")
        for name in ("max_body_bytes", "body_seconds"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}.", fix=f"Raise {flag(name)}.")
        if self.drain_seconds < 0:
            raise ConfigError(f"drain_seconds cannot be negative: {self.drain_seconds}.", fix="Raise --drain-seconds.")
        if any(not name for name in self.served_model_names):
            raise ConfigError("A served model name is empty.", fix="Give --served-model-name a name.")
        if any(not key for key in self.api_keys):
            raise ConfigError("An API key is empty.", "Anybody could send it.", "Set --api-key to a secret.")
        check_origins(self.allowed_origins)
        if self.cache_isolation not in ISOLATIONS:
            raise ConfigError(
                f"cache_isolation {self.cache_isolation!r} is not known.", nearest(self.cache_isolation, ISOLATIONS)
            )
        if self.cache_isolation == "key" and not self.api_keys:
            raise ConfigError(
                "cache_isolation by key needs keys.", "Without --api-key all requests look alike.", "Set --api-key."
            )


def flag(name: str) -> str:
    """`max_body_bytes` -> `--max-body-bytes`."""
    return "--" + name.replace("_", "-")
