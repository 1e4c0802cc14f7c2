"""What the prefix cache did, counted: what was found, what it saved, and why not more. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from perilune.cache.geometry import PAGE_TOKENS
from perilune.cache.radix import Lost, Match
from perilune.cache.snapshots import ORIGINS, reusable

Verdict = Literal["hit", "partial", "short", "unseen", "evicted", "no_snapshot"]
VERDICTS: tuple[Verdict, ...] = ("hit", "partial", "short", "unseen", "evicted", "no_snapshot")


@dataclass(frozen=True)
class PrefixSettings:
    """`stateful`: the model has a recurrent state. `interval`: tokens of prefill between two interval snapshots."""

    stateful: bool
    interval: int = 8192


def verdict(prompt_tokens: int, match: Match, lost: Lost) -> Verdict:
    """How a look-up ended.

    hit: all that can be reused is; partial: some of it is; and where nothing is: short: the prompt has no whole page to
    reuse; evicted: it was here and made way; no_snapshot: pages are known, but no state was ever taken on them;
    unseen: its first page is not known.
    """
    most = reusable(prompt_tokens)
    if not most:
        return "short"
    if match.tokens:
        return "hit" if match.tokens == most else "partial"
    if lost.tokens or (lost.kv_tokens and not match.kv_tokens):
        return "evicted"
    return "no_snapshot" if match.kv_tokens else "unseen"


@dataclass
class PrefixCounts:
    """Totals since the start."""

    kv_tokens: int = 0
    reused_tokens: int = 0
    recomputed_tokens: int = 0
    evicted_tokens: int = 0
    pages_evicted: int = 0
    snapshots_evicted: int = 0
    snapshots_skipped: int = 0
    lookups: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERDICTS, 0))
    snapshots: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ORIGINS, 0))

    def look_up(self, prompt_tokens: int, match: Match, lost: Lost) -> None:
        """A request was admitted with what `match` found; `lost` would have been found as well."""
        self.lookups[verdict(prompt_tokens, match, lost)] += 1
        self.evicted_tokens += lost.tokens
        self.kv_tokens += match.kv_tokens
        self.reused_tokens += match.tokens
        self.recomputed_tokens += match.kv_tokens - match.tokens

    def named(self) -> dict[str, int]:
        """Under the names that `/metrics` shows."""
        return {
            "prefix_kv_matched_tokens_total": self.kv_tokens,
            "prefix_state_matched_tokens_total": self.reused_tokens,
            "prefix_recomputed_tokens_total": self.recomputed_tokens,
            "prefix_evicted_tokens_total": self.evicted_tokens,
            "prefix_evicted_pages_total": self.pages_evicted,
            "prefix_evicted_snapshots_total": self.snapshots_evicted,
            "prefix_skipped_snapshots_total": self.snapshots_skipped,
            **{f"prefix_lookups_{name}_total": count for name, count in self.lookups.items()},
            **{f"prefix_snapshots_{name}_total": count for name, count in self.snapshots.items()},
        }


def explain(prompt_tokens: int, match: Match, lost: Lost) -> str:
    """One line for the log: what of a prompt is reused, and why not more."""
    why = {
        "hit": "all that can be",
        "partial": "what follows is new",
        "short": f"no whole page of {PAGE_TOKENS} tokens to reuse",
        "unseen": f"its first {PAGE_TOKENS} tokens are not known",
        "evicted": "what was known of it made way",
        "no_snapshot": "pages are known, but no state",
    }[verdict(prompt_tokens, match, lost)]
    if match.tokens and match.kv_tokens > match.tokens:
        why = f"pages reach {match.kv_tokens}, but no state beyond"
    if match.tokens and lost.tokens:
        why = f"{lost.tokens} more made way"
    return f"{match.tokens} of {prompt_tokens} prompt tokens reused: {why}"
