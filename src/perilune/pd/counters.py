"""What the metrics page shows of transfers. Plain numbers, written by one thread, read by any."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Counters:
    """Totals since the start, but for the gauges at the end.

    `early_bytes` are those of `received_bytes` that came while their prompt was still computed. `transfer_seconds` is
    from ticket to valid, summed; `link_bytes_per_second` a moving mean of single fetches.
    """

    transfers: int = 0
    transfer_seconds: float = 0.0
    received_bytes: int = 0
    early_bytes: int = 0
    descriptors: int = 0
    retries: int = 0
    failures: int = 0
    local_fallbacks: int = 0
    tickets: int = 0
    tickets_refused: int = 0
    leases_released: int = 0
    leases_expired: int = 0
    leases_abandoned: int = 0
    leases_withdrawn: int = 0
    messages_refused: int = 0
    resets: int = 0
    link_bytes_per_second: float = 0.0
    leases: int = 0
    receptions: int = 0
    quarantined_pages: int = 0

    _GAUGES = ("link_bytes_per_second", "leases", "receptions", "quarantined_pages")

    def note_rate(self, nbytes: int, seconds: float) -> None:
        if nbytes and seconds > 0:
            seen, old = nbytes / seconds, self.link_bytes_per_second
            self.link_bytes_per_second = seen if not old else 0.8 * old + 0.2 * seen

    def named(self) -> dict[str, int | float]:
        """Under the names that `/metrics` shows."""
        return {
            f"pd_{name}" if name in self._GAUGES else f"pd_{name}_total": value for name, value in asdict(self).items()
        }
