"""Talking to the built-in model through the page, in a real browser, against a real server."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import live
from live import KEY, LiveServer
from page_driver import ENDLESS, answer, ask, asked, bend, finished, open_page, replay, signed_in, streaming, wait_until
from playwright.sync_api import Browser, Page, expect

QUESTION = "What kind of software is perilune?"
KNOWN = re.compile("perilune serves hybrid linear-attention language models")
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}}}]  # fmt: skip

KEPT = """() => new Promise(resolve => {
  indexedDB.open('perilune').onsuccess = ({target: {result}}) => {
    const all = result.transaction('conversations').objectStore('conversations').getAll()
    all.onsuccess = () => resolve(all.result.some(({turns}) => turns.at(-1).state === 'streaming' && turns.at(-1).text))
  }
})"""
"""What has come of an answer is in the browser's storage."""


def set_up(page: Page, **values: str) -> None:
    page.get_by_role("button", name="Settings").click()
    for label, value in values.items():
        page.get_by_label(label.replace("_", " ")).fill(value)
    page.get_by_role("button", name="Settings").click()


def test_a_question_is_answered_with_its_numbers_and_the_next_one_finds_it_in_the_cache(chat: Page, artefacts: Path):
    set_up(chat, Temperature="0")
    ask(chat, QUESTION)
    expect(finished(chat).locator(".prose")).to_have_text(KNOWN)
    numbers = answer(chat).locator(".numbers")
    expect(numbers).to_have_text(re.compile(r"prompt\d+cached0output\d+first token"))
    ask(chat, "Who needs it, and for what kind of work would one take it?")
    finished(chat, 1)
    ask(chat, "What is chunked prefill?")
    expect(finished(chat, 2).locator(".numbers")).to_have_text(re.compile("cached64"))
    expect(chat.get_by_text(re.compile(r"of 16,384 tokens"))).to_be_visible()
    chat.screenshot(path=artefacts / "chat.png")


def test_words_appear_while_they_are_made_and_stop_frees_the_engine(chat: Page, roomy: LiveServer):
    bend(chat, **ENDLESS)
    ask(chat, QUESTION)
    streaming(chat)
    chat.get_by_role("button", name="Stop").click()
    expect(finished(chat).get_by_text("Stopped.", exact=True)).to_be_visible()
    expect(answer(chat).locator(".numbers")).to_be_visible()
    roomy.wait_idle()


def test_escape_stops_too_and_the_next_question_goes_on_from_what_was_said(chat: Page):
    bend(chat, **ENDLESS)
    ask(chat, QUESTION)
    streaming(chat)
    chat.get_by_label("Your message").press("Escape")
    finished(chat)
    chat.unroute_all()
    bodies = asked(chat)
    ask(chat, "Thank you")
    finished(chat, 1)
    assert [message["role"] for message in bodies[0]["messages"]] == ["user", "assistant", "user"]


def test_regenerate_asks_the_same_once_more_and_replaces_the_answer(chat: Page):
    bodies = asked(chat)
    ask(chat, QUESTION)
    finished(chat)
    with chat.expect_request("**/v1/chat/completions"):
        chat.get_by_role("button", name="Regenerate").click()
    finished(chat)
    expect(chat.locator("article.answer")).to_have_count(1)
    assert len(bodies) == 2
    assert bodies[0]["messages"] == bodies[1]["messages"]


def test_system_prompt_and_sampling_reach_the_server_and_what_is_empty_does_not(chat: Page):
    bodies = asked(chat)
    set_up(chat, System_prompt="Be brief.", Temperature="0.5", Top_k="7", Most_tokens="9", Seed="3")
    ask(chat, QUESTION)
    finished(chat)
    (body,) = bodies
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    assert (body["temperature"], body["top_k"], body["max_tokens"], body["seed"]) == (0.5, 7, 9, 3)
    assert not {"top_p", "min_p", "tools", "model"} & body.keys()


def test_a_file_comes_before_the_question_and_can_be_looked_at(chat: Page, tmp_path: Path):
    bodies = asked(chat)
    file = tmp_path / "notes.txt"
    file.write_text("The code of the blue harbour is 4821.\n```\ninside\n```\n")
    chat.locator("input[type=file]").set_input_files(file)
    expect(chat.get_by_text("notes.txt")).to_be_visible()
    ask(chat, "What is the code of the blue harbour?")
    finished(chat)
    content = bodies[0]["messages"][0]["content"]
    assert content == f"notes.txt:\n\n````\n{file.read_text()}\n````\n\nWhat is the code of the blue harbour?"
    chat.locator("article.said summary").click()
    expect(chat.locator("article.said pre")).to_have_text(re.compile("4821"))


def test_what_is_no_text_is_refused_with_its_name(chat: Page, tmp_path: Path):
    file = tmp_path / "picture.bin"
    file.write_bytes(b"\x89PNG\0\0")
    chat.locator("input[type=file]").set_input_files(file)
    expect(chat.get_by_role("alert").filter(has_text="picture.bin is not a text file")).to_be_visible()


def test_conversations_outlive_a_reload_and_an_answer_cut_short_by_one_says_so(chat: Page):
    ask(chat, QUESTION)
    text = finished(chat).locator(".prose").inner_text()
    chat.reload()
    expect(answer(chat).locator(".prose")).to_have_text(text)
    bend(chat, **ENDLESS)
    ask(chat, "And now?")
    streaming(chat, 1)
    wait_until(lambda: chat.evaluate(KEPT))
    chat.reload()
    expect(finished(chat, 1).get_by_text("Interrupted")).to_be_visible()
    expect(answer(chat, 1).locator(".prose")).not_to_be_empty()


def test_conversations_can_be_taken_out_and_deleted(chat: Page):
    ask(chat, QUESTION)
    text = finished(chat).locator(".prose").inner_text()
    chat.get_by_text("Export", exact=True).click()
    with chat.expect_download() as saved:
        chat.get_by_role("button", name="As Markdown").click()
    markdown = Path(saved.value.path()).read_text()
    assert QUESTION in markdown
    assert text in markdown
    with chat.expect_download() as saved:
        chat.get_by_role("button", name="Export all").click()
    (kept,) = json.loads(Path(saved.value.path()).read_text())["conversations"]
    assert [turn["role"] for turn in kept["turns"]] == ["user", "assistant"]
    chat.once("dialog", lambda dialog: dialog.accept())
    chat.get_by_role("button", name="Delete").click()
    expect(chat.get_by_role("navigation").locator("..")).not_to_contain_text(QUESTION)
    chat.reload()
    expect(chat.get_by_role("complementary")).not_to_contain_text(QUESTION)


def test_two_tabs_answer_at_once_and_each_sees_what_the_other_wrote(chat: Page, roomy: LiveServer):
    other = open_page(chat.context.new_page(), roomy)
    bend(chat, **ENDLESS)
    bend(other, **ENDLESS)
    ask(chat, "The first tab asks")
    ask(other, "The second tab asks")
    streaming(chat)
    streaming(other)
    expect(other.get_by_role("complementary")).to_contain_text("The first tab asks")
    expect(chat.get_by_role("complementary")).to_contain_text("The second tab asks")
    other.get_by_role("link", name="The first tab asks").click()
    expect(other.get_by_text("Another tab is answering here.")).to_be_visible()
    streaming(other)
    chat.bring_to_front()
    chat.get_by_role("button", name="Stop").click()
    expect(finished(chat).get_by_text("Stopped.", exact=True)).to_be_visible()
    expect(finished(other).get_by_text("Stopped.", exact=True)).to_be_visible()
    other.get_by_role("link", name="The second tab asks").click()
    other.get_by_role("button", name="Stop").click()
    finished(other)
    roomy.wait_idle()


def test_a_server_that_dies_in_mid_answer_is_told_and_found_again_when_it_is_back(browser: Browser, tmp_path: Path):
    from browser import profile

    server = live.start(tmp_path, "--max-context", "16384")
    port = server.url.rpartition(":")[2]
    again = None
    try:
        with profile(browser) as context:
            page = open_page(signed_in(context).new_page(), server)
            bend(page, **ENDLESS)
            ask(page, QUESTION)
            streaming(page)
            server.process.kill()
            expect(finished(page).locator(".wrong")).to_have_text(re.compile("connection to the server was lost"))
            expect(answer(page).locator(".prose")).not_to_be_empty()
            expect(page.get_by_role("status").filter(has_text="does not answer")).to_be_visible()
            again = live.start(tmp_path, "--max-context", "16384", "--port", port)
            expect(page.get_by_role("status").filter(has_text="The server is back")).to_be_visible()
            page.unroute_all()
            page.get_by_role("button", name="Regenerate").click()
            expect(finished(page).locator(".numbers")).to_be_visible()
            expect(page.locator(".wrong:visible")).to_have_count(0)
    finally:
        server.process.send_signal(signal.SIGKILL)
        if again is not None:
            again.stop()


def test_a_paste_of_100_000_tokens_becomes_an_attachment_and_the_page_goes_on(chat: Page):
    bodies = asked(chat)
    text = "The code of the blue harbour is 4821. " * 13_000
    chat.evaluate(
        """text => {
          const clipboardData = new DataTransfer()
          clipboardData.setData('text/plain', text)
          const paste = new ClipboardEvent('paste', {clipboardData, bubbles: true, cancelable: true})
          document.querySelector('form textarea').dispatchEvent(paste)
        }""",
        text,
    )
    expect(chat.get_by_text("Pasted text")).to_be_visible()
    expect(chat.get_by_text("more than fits")).to_be_visible()
    ask(chat, "What is the code?")
    expect(finished(chat).locator(".wrong")).to_have_text(re.compile("16,?384"))
    assert text in bodies[0]["messages"][0]["content"]
    assert chat.evaluate("document.body.innerText.length") < 5_000
    chat.get_by_label("Your message").press_sequentially("still quick")
    expect(chat.get_by_label("Your message")).to_have_value("still quick")
    chat.reload()
    expect(chat.get_by_text("Pasted text")).to_be_visible()


def test_a_look_at_the_live_view_leads_back_to_the_same_conversation(chat: Page):
    ask(chat, QUESTION)
    finished(chat)
    chat.get_by_role("link", name="Live").click()
    expect(chat.get_by_role("heading", name="Memory").first).to_be_visible()
    chat.get_by_role("link", name="Chat").click()
    expect(answer(chat)).to_be_visible()
    chat.get_by_role("link", name="New conversation").click()
    expect(answer(chat)).to_have_count(0)


def test_reasoning_is_folded_away_and_can_be_unfolded(chat: Page):
    reasoning = ({"reasoning_content": "First I "}, {"reasoning_content": "think."})
    replay(chat, {"role": "assistant", "content": ""}, *reasoning, {"content": "Then I speak."})
    ask(chat, "Think")
    expect(finished(chat).locator(".prose")).to_have_text("Then I speak.")
    expect(chat.get_by_text("First I think.")).not_to_be_visible()
    chat.get_by_text("Thought").click()
    expect(chat.get_by_text("First I think.")).to_be_visible()


def test_a_tool_call_is_shown_and_its_result_goes_back_to_the_model(chat: Page):
    set_up(chat, Tools=json.dumps(TOOLS))
    bend(chat, tool_choice="required")
    ask(chat, "How is the weather?")
    call = finished(chat).locator(".call")
    expect(call).to_have_text(re.compile(r"calls weather.*city", re.DOTALL))
    chat.unroute_all()
    bodies = asked(chat)
    chat.get_by_label("Result of weather").fill("rain")
    chat.get_by_role("button", name="Give to the model").click()
    finished(chat, 1)
    roles = [message["role"] for message in bodies[0]["messages"]]
    assert roles == ["user", "assistant", "tool"]
    result = bodies[0]["messages"][2]
    assert result["content"] == "rain"
    assert result["tool_call_id"] == bodies[0]["messages"][1]["tool_calls"][0]["id"]


def test_behind_a_key_the_page_asks_for_it_once_and_can_forget_it(page: Page, roomy: LiveServer):
    page.goto(roomy.url)
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("alert")).to_have_text("That is not a key of this server.")
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".dot.up")).to_be_visible()
    ask(page, QUESTION)
    finished(page)
    page.reload()
    expect(page.locator(".dot.up")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    page.reload()
    expect(page.get_by_label("API key")).to_be_visible()
