"""Which engine answers, what happens when one fails, and that a client always gets an answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from engines import (
    DONE,
    MODEL,
    Call,
    Engine,
    chat,
    chunk,
    engine,
    front,
    refusal,
    says_hello,
    stream,
    until,
)  # fmt: skip
from starlette.responses import Response, StreamingResponse

from perilune.http.process import listen, url_of
from perilune.router.config import RouterConfig, places

CHAT = "/v1/chat/completions"


def config(*workers: Engine | str, **more: Any) -> RouterConfig:
    urls = [each if isinstance(each, str) else each.url for each in workers]
    return RouterConfig(places=places(workers=urls), **{"contract": "openai-plain", "health_seconds": 0.05, **more})


def fails(status: int, **headers: str) -> Any:
    async def answer(_: Engine, call: Call) -> Response:
        return refusal(status, **headers)

    return answer


def broken_off(*parts: bytes) -> Any:
    """Says `parts`, then loses the connection."""

    async def answer(_: Engine, call: Call) -> Response:
        async def events() -> AsyncIterator[bytes]:
            for part in parts:
                yield part
                await asyncio.sleep(0)
            raise ConnectionResetError

        return StreamingResponse(events(), media_type="text/event-stream")

    return answer


async def hangs(_: Engine, call: Call) -> Response:
    await asyncio.Event().wait()
    raise AssertionError


def nobody() -> str:
    """A URL where nothing listens."""
    listener = listen("127.0.0.1", 0)
    url = url_of(listener)
    listener.close()
    return url


async def test_a_stream_comes_through_byte_for_byte() -> None:
    whole = b": ping\n\n" + chunk("a") + chunk("bé") + DONE
    parts = [whole[i : i + 23] for i in range(0, len(whole), 23)]

    async def answer(_: Engine, call: Call) -> Response:
        return stream(*parts)

    async with engine(answer) as e, front(config(e)) as (_, client):
        got = await client.post(CHAT, json=chat(stream=True))
    assert got.content == whole
    assert got.headers["content-type"].startswith("text/event-stream")
    assert got.headers["x-perilune-route"].startswith("decode=w0 prefill=w0 why=")


async def test_a_body_reaches_the_engine_as_the_client_meant_it() -> None:
    body = {**chat("é\u2028"), "seed": 2**60, "temperature": 0.1, "logit_bias": {"5": -1.5}, "unknown": None}
    async with engine() as e, front(config(e)) as (_, client):
        assert (await client.post(CHAT, json=body)).json()["choices"][0]["message"]["content"] == e.url
    assert e.calls[0].body == body


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_an_engine_that_cannot_is_replaced_by_one_that_can(status: int, streamed: bool) -> None:
    async with engine(fails(status)) as bad, engine() as good, front(config(bad, good)) as (_, client):
        for _ in range(4):
            answer = await client.post(CHAT, json=chat(stream=streamed))
            assert answer.status_code == 200
            assert good.url in answer.text


async def test_a_connection_lost_before_the_first_token_is_tried_elsewhere_and_seen_by_nobody() -> None:
    for lost in (
        broken_off(),
        broken_off(b": ping\n\n", b'data: {"cho'),
        broken_off(b'data: {"error": {"code": 500}}\n\n'),
    ):
        async with engine(lost) as bad, engine() as good, front(config(bad, good)) as (_, client):
            for _ in range(2):
                assert (await client.post(CHAT, json=chat(stream=True))).content == chunk(good.url) + DONE


async def test_34_an_engine_lost_in_mid_stream_gives_an_explicit_error_and_nothing_is_tried_again() -> None:
    lost = broken_off(chunk("a"), chunk("b")[:12])
    async with engine(lost) as one, engine(lost) as two, front(config(one, two)) as (router, client):
        answer = await client.post(CHAT, json=chat(stream=True))
        events = answer.text.split("\n\n")
        assert events[0].encode() + b"\n\n" == chunk("a")
        assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == "worker_lost"
        assert events[2:] == [""]
        assert len(one.calls) + len(two.calls) == 1
        count = router.metrics.registry.get_sample_value
        labels = {"path": CHAT, "decode": "w0" if one.calls else "w1", "prefill": "", "outcome": "broken"}
        await until(lambda: count("perilune_route_requests_total", labels) == 1)


async def test_a_stream_that_ends_without_saying_so_is_an_error_too() -> None:
    async def stops(_: Engine, call: Call) -> Response:
        return stream(chunk("a"))

    async with engine(stops) as e, front(config(e)) as (_, client):
        assert "worker_lost" in (await client.post(CHAT, json=chat(stream=True))).text


async def test_a_broken_stream_of_responses_ends_in_that_endpoints_own_error() -> None:
    lost = broken_off(b'event: response.created\ndata: {"type":"response.created"}\n\n')
    async with engine(lost) as e, front(config(e)) as (_, client):
        answer = await client.post("/v1/responses", json={"model": MODEL, "input": "hi", "stream": True})
    last = answer.text.split("\n\n")[1]
    assert last.startswith("event: error\ndata: ")
    assert json.loads(last.partition("data: ")[2])["code"] == "worker_lost"


async def test_a_stream_that_falls_silent_is_ended() -> None:
    async def silent(_: Engine, call: Call) -> Response:
        async def events() -> AsyncIterator[bytes]:
            yield chunk("a")
            await asyncio.Event().wait()

        return StreamingResponse(events(), media_type="text/event-stream")

    async with engine(silent) as e, front(config(e, stall_seconds=0.1)) as (_, client):
        assert "said nothing for 0.1 s" in (await client.post(CHAT, json=chat(stream=True))).text
        await until(lambda: e.gone == 1)


async def test_what_is_wrong_with_the_request_is_told_in_the_engines_own_words_and_asked_once() -> None:
    async with engine(fails(400)) as one, engine(fails(400)) as two, front(config(one, two)) as (_, client):
        answer = await client.post(CHAT, json=chat())
        assert answer.status_code == 400
        assert answer.json() == {"error": {"message": "no", "type": "t", "code": ""}}
        assert len(one.calls) + len(two.calls) == 1


async def test_when_all_are_overloaded_the_client_is_told_when_to_come_again() -> None:
    busy = fails(503, **{"Retry-After": "7"})
    async with engine(busy) as one, engine(busy) as two, front(config(one, two)) as (_, client):
        answer = await client.post(CHAT, json=chat())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
        assert len(one.calls) == len(two.calls) == 1


async def test_an_engine_that_hangs_is_given_up_as_soon_as_it_is_found_dead() -> None:
    async with engine(hangs) as bad, engine() as good, front(config(bad, good)) as (router, client):
        router.pool.workers["w1"].open += 1  # so that the other is asked first
        asking = asyncio.create_task(client.post(CHAT, json=chat(stream=True)))
        await until(lambda: len(bad.calls) == 1)
        bad.healthy = False
        assert good.url in (await asking).text
        await until(lambda: bad.gone == 1)


async def test_a_deadline_ends_what_would_not_end_by_itself() -> None:
    async with engine(hangs) as e, front(config(e, first_token_seconds=0.1)) as (_, client):
        answer = await client.post(CHAT, json=chat(stream=True))
        assert answer.status_code == 502
        assert "timeout" in answer.json()["error"]["message"]
        await until(lambda: e.gone == 1)


async def test_without_an_engine_the_answer_is_503_and_with_the_first_that_comes_it_is_its_own() -> None:
    url = nobody()
    async with front(config(url, wait_seconds=0.05), up=0) as (_, client):
        answer = await client.post(CHAT, json=chat())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")
        assert answer.headers["retry-after"]
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200
    async with engine() as e, front(config(e)) as (router, client):
        e.healthy = False
        await until(lambda: not router.pool.workers["w0"].up)
        asking = asyncio.create_task(client.post(CHAT, json=chat()))
        await asyncio.sleep(0)
        e.healthy = True
        assert (await asking).status_code == 200


async def test_more_than_the_router_holds_is_turned_away_with_429() -> None:
    async with engine(hangs) as e, front(config(e, max_open=1)) as (_, client):
        asking = asyncio.create_task(client.post(CHAT, json=chat()))
        await until(lambda: len(e.calls) == 1)
        answer = await client.post(CHAT, json=chat())
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "router_full")
        assert answer.headers["retry-after"]
        asking.cancel()
        await until(lambda: e.gone == 1)
        e.answer = says_hello
        assert (await client.post(CHAT, json=chat())).status_code == 200


async def test_a_client_that_leaves_ends_the_engines_work() -> None:
    for streamed in (False, True):
        async with engine(hangs) as e, front(config(e)) as (router, client):
            asking = asyncio.create_task(client.post(CHAT, json=chat(stream=streamed)))
            await until(lambda e=e: len(e.calls) == 1)
            asking.cancel()
            await until(lambda e=e: e.gone == 1)
            await until(lambda r=router: r.pool.workers["w0"].open == 0)


async def test_keys_are_asked_of_clients_and_the_routers_own_is_shown_to_engines() -> None:
    async with engine() as e, front(config(e, api_keys=("k",), worker_key="w")) as (_, client):
        assert (await client.post(CHAT, json=chat())).status_code == 401
        sent = {"Authorization": "Bearer k"}
        assert (await client.post(CHAT, json=chat(), headers=sent)).status_code == 200
        assert (await client.get("/workers")).status_code == 401
        assert [call.headers["authorization"] for call in e.calls] == ["Bearer w"]
    async with engine() as e, front(config(e)) as (_, client):
        await client.post(CHAT, json=chat(), headers=sent)  # a router without keys passes the client's on
        assert e.calls[0].headers["authorization"] == "Bearer k"
    async with engine() as e, front(config(e, api_keys=("k",))) as (_, client):
        await client.post(CHAT, json=chat(), headers=sent)  # its own are its own
        assert "authorization" not in e.calls[0].headers


async def test_an_engine_that_refuses_the_routers_key_is_not_the_clients_fault() -> None:
    async with engine(fails(401)) as bad, engine() as good, front(config(bad, good, worker_key="w")) as (_, client):
        for _ in range(2):
            assert good.url in (await client.post(CHAT, json=chat())).text


async def test_models_are_those_of_all_engines_and_a_request_goes_where_its_model_is() -> None:
    async with engine() as one, engine(models=("other",)) as two, front(config(one, two)) as (_, client):
        assert [entry["id"] for entry in (await client.get("/v1/models")).json()["data"]] == [MODEL, "other"]
        assert (await client.get("/v1/models/other")).json()["id"] == "other"
        assert (await client.get("/v1/models/none")).status_code == 404
        for name, where in ((MODEL, one), ("other", two)):
            assert where.url in (await client.post(CHAT, json={**chat(), "model": name})).text
        answer = await client.post(CHAT, json={**chat(), "model": "othr"})
        assert answer.status_code == 404
        assert "'other'" in answer.json()["error"]["message"]


async def test_the_same_beginning_goes_to_the_engine_that_has_read_it() -> None:
    async with engine() as one, engine() as two, front(config(one, two)) as (_, client):
        said = {each: await client.post(CHAT, json=chat(f"{each} " * 3000)) for each in ("alpha", "beta")}
        first = {each: answer.text for each, answer in said.items()}
        assert len(set(first.values())) == 2  # the second went to the one that was free
        for _ in range(3):
            for each, where in first.items():
                again = await client.post(CHAT, json=chat(f"{each} " * 3000 + "and more"))
                assert again.text == where


async def test_equal_engines_take_turns() -> None:
    async with engine() as one, engine() as two, front(config(one, two)) as (_, client):
        for _ in range(6):
            await client.post(CHAT, json=chat())
        assert len(one.calls) == len(two.calls) == 3


async def test_engines_come_and_go_with_the_file_that_names_them(tmp_path: Path) -> None:
    file = tmp_path / "workers.yaml"
    async with engine() as one, engine() as two:
        file.write_text(f"workers: [{one.url}]\n")
        made = RouterConfig(workers_file=str(file), contract="openai-plain", health_seconds=0.05)
        async with front(made) as (router, client):
            assert one.url in (await client.post(CHAT, json=chat())).text
            file.write_text(f"workers: [{two.url}]\n")
            await until(lambda: [w.place.url for w in router.pool.workers.values() if w.up] == [two.url])
            assert two.url in (await client.post(CHAT, json=chat())).text
            file.write_text("wrokers: []\n")  # said on the terminal; the engines stay
            await asyncio.sleep(0)
            assert two.url in (await client.post(CHAT, json=chat())).text


async def test_bodies_that_are_none_are_refused_at_the_door() -> None:
    async with engine() as e, front(config(e)) as (_, client):
        for content in (b"{", b"[]", b'{"model": 5}', b'{"a": NaN}', b""):
            answer = await client.post(CHAT, content=content)
            assert answer.status_code == 400, content
            assert answer.json()["error"]["message"]
        assert e.calls == []


async def test_metrics_tell_engines_requests_and_reasons() -> None:
    async with engine() as e, front(config(e)) as (_, client):
        await client.post(CHAT, json=chat())
        await client.post(CHAT, json=chat(stream=True))
        text = (await client.get("/metrics")).text
        assert 'perilune_route_worker_up{role="both",worker="w0"} 1.0' in text
        assert f'perilune_route_requests_total{{decode="w0",outcome="ok",path="{CHAT}",prefill=""}} 2.0' in text
        assert "perilune_route_choices_total{why=" in text
        (row,) = (await client.get("/workers")).json()
        assert (row["name"], row["url"], row["up"], row["models"]) == ("w0", e.url, True, [MODEL])


async def test_a_draining_engine_gets_nothing_new() -> None:
    draining = {"accepting": False, "slots": {"total": 8, "free": 8}}
    async with engine(status=draining) as one, engine(status={**draining, "accepting": True}) as two:
        async with front(config(one, two, contract="perilune")) as (_, client):
            for _ in range(4):
                assert two.url in (await client.post(CHAT, json=chat())).text


async def test_a_full_engine_is_left_for_one_with_a_free_slot_even_if_it_knows_the_prompt() -> None:
    full = {"slots": {"total": 2, "free": 0}, "queue": {"waiting": 3}}
    free = {"slots": {"total": 2, "free": 2}}
    text = "alpha " * 1000
    async with engine(status=free) as one, engine(status=free) as two:
        async with front(config(one, two, contract="perilune")) as (router, client):
            where = (await client.post(CHAT, json=chat(text))).json()["choices"][0]["message"]["content"]
            known, other = (one, two) if where == one.url else (two, one)
            known.status = full
            worker = next(each for each in router.pool.workers.values() if each.place.url == known.url)
            await until(lambda: worker.status is not None and worker.status.slots.free == 0)
            assert other.url in (await client.post(CHAT, json=chat(text))).text


async def test_engines_that_list_their_models_to_nobody_get_every_model() -> None:
    async with engine() as e, front(config(e)) as (router, client):
        router.pool.workers["w0"].models = None
        assert e.url in (await client.post(CHAT, json={**chat(), "model": "any"})).text
