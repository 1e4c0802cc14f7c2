"""How one engine takes part in hand-overs: the settings behind `--role` and `--pd-…`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from perilune.errors import ConfigError, nearest
from perilune.pd.keys import KEY_VARIABLE, ClusterKey

if TYPE_CHECKING:
    from perilune.pd.settings import PdSettings

ROLES = ("prefill", "decode", "both")
FALLBACKS = ("prefill", "error")
Fallback = Literal["prefill", "error"]
_ANYWHERE = ("0.0.0.0", "::", "*")  # noqa: S104 - refused, not bound


@dataclass(frozen=True)
class RoleConfig:
    """`role` "prefill" reads prompts for others, "decode" takes what they read, "both" does either.

    The control channel and the tcp transport listen on `host`; others are told `advertise`. `transports` are tried in
    their order; none named means all there are. The cluster's key comes from `key_file` or the environment, never from
    here. `stream`: a cache may be read page by page while the prompt is still computed. `fallback`: what becomes of a
    request whose cache does not arrive, unless it says so itself. A lease that nobody renews ends after
    `lease_seconds`. Raises ConfigError.
    """

    role: str = "both"
    host: str = "127.0.0.1"
    port: int = 0
    advertise: str = ""
    transports: tuple[str, ...] = ()
    key_file: str | None = None
    stream: bool = False
    fallback: Fallback = "prefill"
    lease_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ConfigError(f"The role {self.role!r} is not known.", nearest(self.role, ROLES))
        if self.fallback not in FALLBACKS:
            raise ConfigError(f"pd_fallback {self.fallback!r} is not known.", nearest(self.fallback, FALLBACKS))
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"Port {self.port} does not exist.", fix="Ports go from 0 to 65535.")
        if self.lease_seconds < 1:
            raise ConfigError(f"pd_lease_seconds must be at least 1, not {self.lease_seconds:g}.")
        if self.host in _ANYWHERE and not self.advertise:
            raise ConfigError(
                f"{self.host} is no address that another engine could call.", "Tickets carry this engine's address.",
                "Set --pd-advertise to it.",
            )  # fmt: skip
        self.settings()

    @property
    def lends(self) -> bool:
        """Whether it reads prompts for others."""
        return self.role != "decode"

    @property
    def borrows(self) -> bool:
        """Whether it takes what others have read."""
        return self.role != "prefill"

    @property
    def serves(self) -> bool:
        """Whether it answers whole requests."""
        return self.role != "prefill"

    def settings(self) -> PdSettings:
        """Raises ConfigError for a transport that does not exist."""
        # Here, since numpy comes with them, and `perilune plan` reads an EngineConfig without it.
        from perilune.pd.leases import LeaseTimes
        from perilune.pd.reception import ReceptionTimes
        from perilune.pd.settings import TRANSPORTS, PdSettings

        transports, ttl = self.transports or TRANSPORTS, self.lease_seconds
        return PdSettings(
            self.host, self.port, self.advertise, transports, LeaseTimes(ttl=ttl), ReceptionTimes(ttl=ttl)
        )

    def key(self) -> ClusterKey:
        """Raises ConfigError if there is none."""
        key = ClusterKey.load(self.key_file)
        if key is None:
            raise ConfigError(
                "There is no cluster key.", "Engines that hand over caches know each other by it.",
                f"Set {KEY_VARIABLE}, or --pd-key-file to a file with it (`openssl rand -hex 32`).",
            )  # fmt: skip
        return key


def role_config(role: str | None, *, key_file: str | None, **settings: Any) -> RoleConfig | None:
    """None without a cluster key, if no role asks for one. Raises ConfigError as RoleConfig and its `key`."""
    if role is None and ClusterKey.load(key_file) is None:
        return None
    config = RoleConfig(role or "both", key_file=key_file, **settings)
    config.key()
    return config
