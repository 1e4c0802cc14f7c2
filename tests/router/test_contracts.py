"""What each kind of engine is sent, to the byte, when a prompt is handed over; and what undoes a hand-over."""

from __future__ import annotations

import asyncio
from typing import Any

import engines
import pytest
from engines import DONE, Call, Engine, chat, chunk, engine, front, refusal, stream, until, whole
from starlette.responses import Response, StreamingResponse

from perilune.pd.keys import KEY_VARIABLE, STAMP_HEADER, ClusterKey
from perilune.router.config import RouterConfig, places

SECRET = "sixteen bytes or more"
LONG = "word " * 2000
CLIENT = chat(LONG, stream=True, stream_options={"include_usage": True}, temperature=0.5, max_tokens=7, min_tokens=2)
TICKET = {"do_remote_prefill": True, "ticket": "T1", "engine": "p", "tokens": 2500}
BLOCKS = {
    "do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[1, 2], [3]], "remote_engine_id": "e",
    "remote_request_id": "r", "remote_host": "h", "remote_port": 5600, "tp_size": 1, "something_new": {"a": 1},
}  # fmt: skip


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> ClusterKey:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    return ClusterKey(SECRET.encode())


def config(prefill: Engine, *decode: Engine, contract: Any = "perilune", **more: Any) -> RouterConfig:
    named = places([prefill.url], [each.url for each in decode])
    return RouterConfig(places=named, contract=contract, health_seconds=0.1, remote_from=64, **more)


def gives(params: dict[str, Any] | None) -> Any:
    async def answer(_: Engine, call: Call) -> Response:
        if call.path == "/pd/withdraw":
            return Response(status_code=204)
        return whole("x", kv_transfer_params=params)

    return answer


def fresh_tickets() -> Any:
    made = 0

    async def answer(_: Engine, call: Call) -> Response:
        nonlocal made
        made += call.path != "/pd/withdraw"
        return whole("x", kv_transfer_params={**TICKET, "ticket": f"T{made}"})

    return answer


async def says_text(_: Engine, call: Call) -> Response:
    return stream(chunk("a"), chunk("b"), DONE)


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


async def test_perilune_is_asked_for_a_ticket_and_given_it_verbatim(key: ClusterKey) -> None:
    async with engine(gives(TICKET)) as p, engine(says_text) as d, front(config(p, d)) as (_, client):
        answer = await client.post("/v1/chat/completions", json=CLIENT, headers={"X-Request-Id": "abc"})
        assert answer.content == chunk("a") + chunk("b") + DONE
        first, second = p.posts()[0], d.posts()[0]
    assert first.body == {
        **without(CLIENT, "stream", "stream_options"),
        "kv_transfer_params": {"do_remote_decode": True, "early": False},
    }
    assert second.body == {**CLIENT, "kv_transfer_params": TICKET}
    for call in (first, second):
        stamp = call.headers[STAMP_HEADER.lower()]
        assert key.stamp("POST", call.path, call.raw) == stamp
        assert call.headers["x-request-id"] == "abc"
    assert answer.headers["x-perilune-route"].startswith("decode=d0 prefill=p0 why=remote uncached=")
    assert "T1" not in answer.text


async def test_vllm_pull_prefills_one_token_and_hands_every_parameter_on() -> None:
    asked = {**CLIENT, "max_completion_tokens": 9}
    async with engine(gives(BLOCKS)) as p, engine(says_text) as d:
        async with front(config(p, d, contract="vllm")) as (_, client):
            await client.post("/v1/chat/completions", json=asked)
        (first,), (second,) = p.posts(), d.posts()
    assert first.body == {
        **without(asked, "stream_options", "min_tokens"),
        "stream": False, "max_tokens": 1, "max_completion_tokens": 1,
        "kv_transfer_params": {
            "do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None, "remote_block_ids": None,
            "remote_host": None, "remote_port": None,
        },
    }  # fmt: skip
    assert second.body == {**asked, "kv_transfer_params": BLOCKS}
    assert first.headers["x-request-id"] == second.headers["x-request-id"]
    assert STAMP_HEADER.lower() not in first.headers


async def test_vllm_push_is_learned_from_the_first_answer_and_then_both_legs_go_at_once() -> None:
    held = asyncio.Event()

    async def slow(engine: Engine, call: Call) -> Response:
        if len(engine.calls) > 1:
            await held.wait()
        return whole("x", kv_transfer_params={**BLOCKS, "transfer_mode": "push"})

    async with engine(slow) as p, engine(says_text) as d, front(config(p, d, contract="vllm")) as (_, client):
        await client.post("/v1/chat/completions", json=CLIENT)
        other = {**CLIENT, **chat("other " + LONG)}
        await client.post("/v1/chat/completions", json=other)  # answered while prefill's answer is still to come
        held.set()
        first, second = p.posts()[1].body["kv_transfer_params"], d.posts()[1].body["kv_transfer_params"]
    assert first["do_remote_decode"] is True
    assert second == {
        "do_remote_prefill": True, "do_remote_decode": False, "remote_engine_id": "e", "remote_host": "h",
        "remote_port": 5600, "tp_size": 1, "transfer_id": first["transfer_id"],
    }  # fmt: skip


async def test_sglang_gets_both_legs_with_one_room_that_is_new_for_every_request() -> None:
    async with engine(says_text) as p, engine(says_text) as d:
        made = RouterConfig(places=places([f"{p.url}#9001"], [d.url]), contract="sglang", remote_from=64)
        async with front(made) as (_, client):
            asked = [{**CLIENT, **chat(f"{number} {LONG}")} for number in range(2)]
            for each in asked:
                answer = await client.post("/v1/chat/completions", json=each)
                assert answer.content == chunk("a") + chunk("b") + DONE
            await until(lambda: len(p.posts()) == 2)
        bodies = [call.body for call in p.posts()]
        assert bodies == [call.body for call in d.posts()]
    rooms = {body["bootstrap_room"] for body in bodies}
    assert len(rooms) == 2
    assert all(0 <= room < 2**63 for room in rooms)
    for body, each in zip(bodies, asked, strict=True):
        meeting = {"bootstrap_host": "127.0.0.1", "bootstrap_port": 9001, "bootstrap_room": body["bootstrap_room"]}
        assert body == {**each, **meeting}


@pytest.mark.parametrize("contract", ["perilune", "vllm", "sglang"])
async def test_37_what_a_client_says_of_addresses_and_tickets_reaches_no_engine(contract: Any) -> None:
    forged = {
        "kv_transfer_params": {"ticket": "forged", "remote_host": "evil"}, "bootstrap_host": "evil",
        "bootstrap_room": 7, "ticket": "forged", "vllm_xargs": {"kv_transfer_params": {"remote_host": "evil"}, "a": 1},
    }  # fmt: skip
    async with engine(gives({**TICKET, **BLOCKS})) as p, engine(says_text) as d:
        async with front(config(p, d, contract=contract)) as (router, client):
            for text in (LONG, "short"):
                sent = {**chat(text, stream=True), **forged}
                await client.post(
                    "/v1/chat/completions", json=sent, headers={STAMP_HEADER: "forged", "X-Data-Parallel-Rank": "3"}
                )
            assert router.metrics.registry.get_sample_value("perilune_route_stripped_fields_total") == 10
        for call in (*p.calls, *d.calls):
            assert b"evil" not in call.raw
            assert b"forged" not in call.raw
            assert call.headers.get(STAMP_HEADER.lower()) != "forged"
            assert "x-data-parallel-rank" not in call.headers
        assert d.posts()[-1].body["vllm_xargs"] == {"a": 1}


async def test_an_engines_own_parameters_do_not_reach_the_client() -> None:
    async with engine(gives(BLOCKS)) as p, engine(gives(BLOCKS)) as d:
        async with front(config(p, d, contract="vllm")) as (_, client):
            said = (await client.post("/v1/chat/completions", json=chat(LONG))).json()
    assert said["choices"][0]["message"]["content"] == "x"
    assert "kv_transfer_params" not in said


@pytest.mark.parametrize("params", [None, {}, "text"])
async def test_14_an_answer_without_a_ticket_is_never_passed_on_as_one(params: Any) -> None:
    async with (
        engine(gives(params)) as p,
        engine(says_text) as d,
        front(config(p, d, contract="vllm")) as (router, client),
    ):
        answer = await client.post("/v1/chat/completions", json=CLIENT)
        assert "why=alone" in answer.headers["x-perilune-route"]
        assert [call.body for call in d.posts()] == [CLIENT]  # read there, not decoded from nothing
        count = router.metrics.registry.get_sample_value
        assert count("perilune_route_retries_total", {"leg": "prefill", "reason": "no_ticket"}) == 1


async def test_38_a_ticket_that_was_not_taken_is_withdrawn_and_never_used_again() -> None:
    async def picky(engine: Engine, call: Call) -> Response:
        return refusal(400, "pd_ticket") if len(engine.calls) == 1 else stream(chunk("a"), DONE)

    async with engine(fresh_tickets()) as p, engine(picky) as d, front(config(p, d)) as (_, client):
        answer = await client.post("/v1/chat/completions", json=CLIENT)
        assert answer.content == chunk("a") + DONE
        await until(lambda: len(p.posts("/pd/withdraw")) == 1)
        assert [call.body["kv_transfer_params"]["ticket"] for call in d.posts()] == ["T1", "T2"]
        assert p.posts("/pd/withdraw")[0].body == {"ticket": "T1"}


async def test_after_two_tickets_that_were_not_taken_decode_reads_the_prompt() -> None:
    async def picky(_: Engine, call: Call) -> Response:
        return refusal(503, "pd_lost") if "kv_transfer_params" in call.body else stream(chunk("a"), DONE)

    async with engine(fresh_tickets()) as p, engine(picky) as d, front(config(p, d)) as (_, client):
        answer = await client.post("/v1/chat/completions", json=CLIENT)
        assert answer.content == chunk("a") + DONE
        assert "why=fallback" in answer.headers["x-perilune-route"]
        assert [call.body.get("kv_transfer_params", {}).get("ticket") for call in d.posts()] == ["T1", "T2", None]


async def test_pd_local_from_prefill_is_not_tried_elsewhere_but_read_on_decode() -> None:
    async def whole_only(_: Engine, call: Call) -> Response:
        return refusal(400, "pd_local")

    async with engine(whole_only) as p, engine(says_text) as d, front(config(p, d)) as (_, client):
        answer = await client.post("/v1/chat/completions", json=CLIENT)
        assert answer.content == chunk("a") + chunk("b") + DONE
        assert [call.body for call in d.posts()] == [CLIENT]


async def test_a_cache_that_did_not_arrive_is_counted_and_said() -> None:
    async def fell_back(_: Engine, call: Call) -> Response:
        made = stream(chunk("a"), DONE)
        made.headers["X-Perilune-Prefill"] = "local"
        return made

    async with engine(gives(TICKET)) as p, engine(fell_back) as d, front(config(p, d)) as (router, client):
        answer = await client.post("/v1/chat/completions", json=CLIENT)
        assert answer.headers["x-perilune-route"].endswith("fell_back")
        assert router.metrics.registry.get_sample_value("perilune_route_local_fallbacks_total") == 1


async def test_21_a_client_that_leaves_during_prefill_ends_prefill() -> None:
    async def never(engine: Engine, call: Call) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with engine(never) as p, engine(says_text) as d, front(config(p, d)) as (router, client):
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=CLIENT))
        await until(lambda: len(p.posts()) == 1)
        asking.cancel()
        await until(lambda: p.gone == 1)
        assert d.posts() == []
        await until(lambda: router.pool.workers["p0"].open == router.pool.workers["p0"].pending == 0)


async def test_21_a_client_that_leaves_before_decode_begins_ends_decode_and_the_ticket() -> None:
    async def never(engine: Engine, call: Call) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with engine(gives(TICKET)) as p, engine(never) as d, front(config(p, d)) as (router, client):
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=CLIENT))
        await until(lambda: len(d.posts()) == 1)
        asking.cancel()
        await until(lambda: d.gone == 1 and len(p.posts("/pd/withdraw")) == 1)
        await until(lambda: router.metrics.registry.get_sample_value("perilune_route_cancels_total") == 1)


async def test_a_client_that_leaves_ends_both_legs_of_sglang() -> None:
    async def endless(engine: Engine, call: Call) -> Response:
        async def events() -> Any:
            yield chunk("a")
            await asyncio.Event().wait()

        return StreamingResponse(events(), media_type="text/event-stream")

    async with engine(endless) as p, engine(endless) as d, front(config(p, d, contract="sglang")) as (_, client):
        async with client.stream("POST", "/v1/chat/completions", json=CLIENT) as answer:
            assert await anext(answer.aiter_raw()) == chunk("a")
        await until(lambda: p.gone == 1 and d.gone == 1)


async def test_when_prefill_of_sglang_fails_decode_is_ended_and_a_new_room_is_taken() -> None:
    async def never(engine: Engine, call: Call) -> Response:
        if "bootstrap_room" in call.body:
            await asyncio.Event().wait()
        return stream(chunk("a"), DONE)

    async def fails(engine: Engine, call: Call) -> Response:
        return refusal(500)

    async with engine(fails) as p, engine(never) as d, front(config(p, d, contract="sglang")) as (_, client):
        answer = await client.post("/v1/chat/completions", json=CLIENT)
        assert answer.content == chunk("a") + DONE
        assert d.gone == 1


async def test_39_several_prompts_and_answers_stay_whole() -> None:
    async with engine(gives(TICKET)) as p, engine(engines.says_hello) as d, front(config(p, d)) as (_, client):
        for path, body in (
            ("/v1/completions", {"model": "tiny", "prompt": [LONG, LONG]}),
            ("/v1/chat/completions", chat(LONG, n=2)),
            ("/v1/responses", {"model": "tiny", "input": LONG}),
        ):
            assert (await client.post(path, json=body)).status_code == 200
        assert p.calls == []
        assert len(d.calls) == 3


async def test_prefill_engines_without_a_key_fail_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(Exception, match="no cluster key"):
        async with front(RouterConfig(places=places(["http://127.0.0.1:1"], ["http://127.0.0.1:2"]))):
            pass
