"""What the router is told, in one frozen dataclass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args
from urllib.parse import urlsplit

from perilune.errors import ConfigError, nearest
from perilune.http.origins import check_origins
from perilune.router.choose import DISTURBANCE
from perilune.units import MIB

Role = Literal["prefill", "decode", "both"]
ContractName = Literal["perilune", "vllm", "sglang", "openai-plain"]
CONTRACTS: tuple[str, ...] = get_args(ContractName)

_LETTERS: dict[Role, str] = {"prefill": "p", "decode": "d", "both": "w"}


@dataclass(frozen=True)
class Place:
    """An engine the router was told of. `port`: SGLang's bootstrap port, if the URL ends in #PORT."""

    name: str
    url: str
    role: Role
    port: int | None = None


def places(prefill: Sequence[str] = (), decode: Sequence[str] = (), workers: Sequence[str] = ()) -> tuple[Place, ...]:
    """Engines by role, named p0, p1, …, d0, …, w0, …. Raises ConfigError for what is no URL or stands twice."""
    given: list[tuple[Role, Sequence[str]]] = [("prefill", prefill), ("decode", decode), ("both", workers)]
    found = [
        Place(f"{_LETTERS[role]}{number}", *_address(text, role))
        for role, texts in given
        for number, text in enumerate(texts)
    ]
    for number, place in enumerate(found):
        if place.url in [other.url for other in found[:number]]:
            raise ConfigError(f"{place.url} is named twice.", fix="An engine that does both is named by --workers.")
    if found and all(place.role == "prefill" for place in found):
        raise ConfigError("Nobody decodes.", "There are only prefill engines.", "Name a --decode engine too.")
    return tuple(found)


def _address(text: str, role: Role) -> tuple[str, Role, int | None]:
    try:
        parts = urlsplit(text)
        _ = parts.port
        port = int(parts.fragment) if parts.fragment else None
    except ValueError as error:
        raise ConfigError(f"{text!r} is no URL of an engine.", f"{error}.", "Write http://host:port.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise ConfigError(f"{text!r} is no URL of an engine.", fix="Write http://host:port.")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc}{path}", role, port


@dataclass(frozen=True)
class RouterConfig:
    """`places` may be empty if `workers_file` names them: a YAML file with lists `prefill`, `decode`, `workers`, read
    again whenever it changes.

    `api_keys` are asked of clients; `worker_key` is sent to engines instead of what the client sent. `pd_key_file`:
    the cluster's key; without it PERILUNE_PD_KEY. `remote_from`: fewest prompt tokens, not counting cached ones, for
    which a prefill on another engine is considered. `disturbance`: what reading a prompt costs those who decode on the
    same engine, as a share of the reading. `retries`: attempts after the first, each elsewhere, as long as
    the client has seen nothing. Times in seconds: for the first token, between two pieces of a stream, for a whole
    answer that is not streamed, until an engine is there, between health checks. `page` answers `/` with one;
    `allowed_origins` are other sites whose pages may ask, "*" for all. Raises ConfigError.
    """

    places: tuple[Place, ...] = ()
    workers_file: str | None = None
    contract: ContractName = "perilune"
    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    worker_key: str | None = field(default=None, repr=False)
    pd_key_file: str | None = None
    early: bool = False
    remote_from: int = 1024
    disturbance: float = DISTURBANCE
    retries: int = 2
    max_open: int = 1024
    first_token_seconds: float = 600.0
    stall_seconds: float = 120.0
    request_seconds: float = 3600.0
    wait_seconds: float = 10.0
    health_seconds: float = 1.0
    max_body_bytes: int = 16 * MIB
    body_seconds: float = 60.0
    drain_seconds: float = 30.0
    page: bool = True
    allowed_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.places and self.workers_file is None:
            raise ConfigError(
                "The router has no engines.", fix="Name them: --workers URL, or --prefill URL and --decode URL."
            )
        if self.contract not in CONTRACTS:
            raise ConfigError(f"{self.contract!r} is no contract.", fix=nearest(self.contract, CONTRACTS))
        for name in ("first_token_seconds", "stall_seconds", "request_seconds", "health_seconds", "max_open"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}.")
        for name in ("retries", "remote_from", "disturbance", "wait_seconds", "drain_seconds"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} cannot be negative: {getattr(self, name)}.")
        check_origins(self.allowed_origins)
        if any(not key for key in self.api_keys):
            raise ConfigError("An API key is empty.", "Anybody could send it.", "Set --api-key to a secret.")
