"""Facts of a host that rules ask for: given on the command line, or what the doctor finds on this one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from perilune.deploy.points import fact_of
from perilune.errors import ConfigError
from perilune.host.doctor import diagnose
from perilune.host.live import Live
from perilune.host.sysroot import Source, Sysroot


def parse_facts(pairs: Iterable[str]) -> dict[str, str | int | None]:
    """`mec_fw=176` to a number; `mec_fw=` to a fact that is not known. Raises ConfigError without `=`."""
    found: dict[str, str | int | None] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.isidentifier():
            raise ConfigError(f"{pair!r} is no fact.", fix="Write --fact NAME=VALUE.")
        found[name] = int(value) if re.fullmatch(r"-?\d+", value) else value or None
    return found


def doctor_facts(source: Source | None = None) -> dict[str, Any]:
    """The verdict of each of the doctor's rules, as `ok("fw.mec")` asks for it; and `mec_fw`, the number alone."""
    checks = diagnose(Sysroot(source or Live())).checks
    found: dict[str, Any] = {check.id: fact_of(check.id, check) for check in checks}
    versions = [check.value for check in checks if check.id == "fw.mec" and isinstance(check.value, int)]
    return {**found, **({"mec_fw": versions[0]} if versions else {})}
