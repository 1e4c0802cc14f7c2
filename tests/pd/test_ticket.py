"""Tickets and messages: what is not signed by the cluster, is changed, or was seen before is nothing."""

from __future__ import annotations

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.errors import ConfigError
from perilune.pd.errors import TicketError
from perilune.pd.keys import ClusterKey
from perilune.pd.messages import Body, Hello, Open, Post, Renew, Stranger
from perilune.pd.ticket import VERSION, Ticket, new_id, open_ticket, prompt_digest

KEY, OTHER = ClusterKey(b"0123456789abcdef"), ClusterKey(b"0123456789abcdeg")
PROMPT = [5, 6, 7]


def ticket(version: int = VERSION) -> Ticket:
    return Ticket(version, new_id(), "p", "inc", "tcp://10.0.0.1:7", 3, prompt_digest(PROMPT), "tables", 30.0)


def test_a_ticket_comes_back_as_it_was() -> None:
    made = ticket()
    assert open_ticket(made.seal(KEY), KEY, PROMPT) == made


@given(st.data())
def test_case_37_a_ticket_with_any_bit_changed_is_refused(data: st.DataObject) -> None:
    sealed = bytearray(base64.urlsafe_b64decode(ticket().seal(KEY)))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(TicketError, match="not signed"):
        open_ticket(base64.urlsafe_b64encode(bytes(sealed)).decode(), KEY)


def test_case_37_an_address_a_client_wrote_is_refused() -> None:
    mine = msgspec.structs.replace(ticket(), control="tcp://attacker:1")
    for key in (OTHER, ClusterKey(b"anything the client likes")):
        with pytest.raises(TicketError, match="not signed"):
            open_ticket(mine.seal(key), KEY)


@given(st.text(max_size=200))
def test_any_text_is_refused_with_a_typed_error(text: str) -> None:
    with pytest.raises(TicketError):
        open_ticket(text, KEY)


@pytest.mark.parametrize("prompt", [[5, 6], [5, 6, 8], [7, 6, 5], []])
def test_case_39_a_ticket_is_for_one_prompt(prompt: list[int]) -> None:
    with pytest.raises(TicketError, match="another prompt"):
        open_ticket(ticket().seal(KEY), KEY, prompt)


def test_other_versions_are_named() -> None:
    with pytest.raises(TicketError, match="version 2"):
        open_ticket(ticket(version=2).seal(KEY), KEY)
    body = msgspec.msgpack.encode({"version": 9})
    with pytest.raises(TicketError, match="another form"):
        open_ticket(base64.urlsafe_b64encode(KEY.sign("ticket", body) + body).decode(), KEY)


def test_case_20_a_ticket_holds_no_point_in_time() -> None:
    """Its lease is a duration, and whether it still runs is asked where it was made."""
    assert {
        name for name in Ticket.__struct_fields__ if "time" in name or "expir" in name or "deadline" in name
    } == set()
    assert ticket().ttl == 30.0


def test_keys_of_different_purposes_do_not_stand_in_for_each_other() -> None:
    body = msgspec.msgpack.encode(ticket())
    for purpose in ("control", "data"):
        with pytest.raises(TicketError, match="not signed"):
            open_ticket(base64.urlsafe_b64encode(KEY.sign(purpose, body) + body).decode(), KEY)  # type: ignore[arg-type]
    assert KEY.name != OTHER.name
    assert "0123456789" not in repr(KEY) + str(vars(KEY))


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="15 bytes"):
        ClusterKey(b"123456789012345")


def test_a_message_is_taken_once() -> None:
    sender, receiver = Post(KEY, "a"), Post(KEY, "b")
    messages = [sender.pack("b", Open("1")), sender.pack("b", Renew(("1", "2")))]
    bodies: list[Body] = []
    for message in messages:
        envelope = receiver.unpack(message)
        assert envelope is not None
        assert receiver.for_us(envelope)
        bodies.append(envelope.body)
    assert bodies == [Open("1"), Renew(("1", "2"))]
    assert [receiver.unpack(message) for message in messages] == [None, None]
    assert receiver.refused == 2


def test_forged_damaged_and_foreign_messages_are_counted_and_dropped() -> None:
    receiver = Post(KEY, "b")
    good = Post(KEY, "a").pack("b", Open("1"))
    strange = msgspec.msgpack.encode(["nothing", "we", "know"])
    for message in (b"", good[:40], good[:-1] + b"x", Post(OTHER, "a").pack("b", Open("1")),
                    KEY.sign("control", strange) + strange):  # fmt: skip
        assert receiver.unpack(message) is None
    assert receiver.refused == 5
    assert receiver.unpack(good) is not None


def test_a_message_for_another_process_is_not_ours_but_hello_is() -> None:
    receiver = Post(KEY, "b")
    for body, ours in ((Open("1"), False), (Hello(), True), (Stranger("c"), True)):
        envelope = receiver.unpack(Post(KEY, str(body)).pack("earlier", body))
        assert envelope is not None
        assert receiver.for_us(envelope) is ours
