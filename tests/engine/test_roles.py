"""Settings of hand-overs: what is wrong is said at start, and the key is never among them."""

from __future__ import annotations

from typing import Any

import pytest

from perilune.engine.roles import RoleConfig, role_config
from perilune.errors import ConfigError
from perilune.pd.keys import KEY_VARIABLE


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"role": "prefil"}, "prefill"),
        ({"transports": ("nxil",)}, "nixl"),
        ({"fallback": "retry"}, "retry"),
        ({"port": 70000}, "70000"),
        ({"host": "0.0.0.0"}, "pd-advertise"),
        ({"lease_seconds": 0.5}, "at least 1"),
    ],
    ids=str,
)
def test_case_40_a_wrong_setting_is_said_at_start(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RoleConfig(**given)


def test_without_a_key_there_are_no_hand_overs_and_a_role_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert role_config(None, key_file=None) is None
    with pytest.raises(ConfigError, match=KEY_VARIABLE):
        role_config("decode", key_file=None)


def test_a_key_alone_makes_an_engine_of_both_roles_and_shows_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "a secret of some length")
    config = role_config(None, key_file=None, stream=True)
    assert config is not None
    assert (config.role, config.lends, config.borrows, config.serves) == ("both", True, True, True)
    assert "secret" not in repr(config)
