"""What a model writes is shown and never done: no script, no markup of its own, no request anywhere."""

from __future__ import annotations

import pytest
from live import LiveServer
from page_driver import ask, bend, finished, replay, requests_elsewhere
from playwright.sync_api import Page, expect

ELSEWHERE = "https://evil.example"
HOSTILE = (
    "<script>owned()</script>",
    "<img src=x onerror=owned()>",
    f"<img src={ELSEWHERE}/p.png>",
    "<svg onload=owned()><animate onbegin=owned() attributeName=x dur=1s></svg>",
    "<iframe src=javascript:owned()></iframe>",
    "<iframe srcdoc='<script>parent.owned()</script>'></iframe>",
    "<body onload=owned()>",
    "<details open ontoggle=owned()>x</details>",
    "<input autofocus onfocus=owned()>",
    "<video><source onerror=owned()></video>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=owned()&gt;'>",
    "<form action=javascript:owned()><button>go</button></form>",
    f"<link rel=stylesheet href={ELSEWHERE}/s.css><style>@import '{ELSEWHERE}/s.css';</style>",
    f"<meta http-equiv=refresh content='0;url={ELSEWHERE}'>",
    f"<base href={ELSEWHERE}/>",
    "<object data=javascript:owned()></object><embed src=javascript:owned()>",
    "<div style='background:url(https://evil.example/b.png)'>styled</div>",
    "<a href='java\nscript:owned()'>a</a>",
    "[one](javascript:owned())",
    "[two](JaVaScRiPt:owned())",
    "[three](java&#x73;cript:owned())",
    "[four](<javascript:owned()>)",
    "[five](data:text/html,<script>owned()</script>)",
    "[six](vbscript:owned())",
    "[seven]: javascript:owned()\n\n[seven]",
    "<javascript:owned()>",
    f"![pixel]({ELSEWHERE}/pixel.png)",
    f"![pixel]({ELSEWHERE}/x 'title\" onerror=\"owned()')",
    "![x](javascript:owned())",
    "![x](x\"onerror=\"owned())",
    f"[fine]({ELSEWHERE}/page 'a\" onmouseover=\"owned()')",
    "```html\"><img src=x onerror=owned()>\n<script>owned()</script>\n```",
    "`<script>owned()</script>`",
    "| a |\n|---|\n| <script>owned()</script> |",
    "# <script>owned()</script>",
    "<!-- --!><script>owned()</script> -->",
    "<noscript><p title='</noscript><img src=x onerror=owned()>'>",
    "&lt;script&gt;owned()&lt;/script&gt;",
    "<x contenteditable onblur=owned() tabindex=1>x",
    "<template><script>owned()</script></template>",
)  # fmt: skip

SCAN = """() => {
  const banned = 'audio base embed form iframe img input link math meta object script source style svg video'
  const bad = []
  for (const element of document.querySelectorAll('.prose *, .reasoning *, .call *')) {
    const name = element.localName
    if (banned.split(' ').includes(name)) bad.push(name)
    for (const {name: attribute, value} of element.attributes) {
      if (attribute.startsWith('on') || attribute === 'style' || attribute === 'srcdoc') bad.push(attribute)
      if (attribute === 'href' && !/^(https?|mailto):/.test(value)) bad.push(value)
    }
    if (name === 'a' && element.relList.contains('noopener') === false) bad.push('a without noopener')
  }
  return bad
}"""


@pytest.fixture
def watched(chat: Page) -> Page:
    chat.evaluate("void (window.owned = () => { window.ownedBy = true })")
    chat.on("dialog", lambda dialog: dialog.dismiss())
    return chat


def check_inert(page: Page) -> None:
    for element in page.locator(".prose a").all():
        element.hover()
    assert page.evaluate(SCAN) == []
    assert page.evaluate("window.ownedBy") is None


def test_hostile_answers_are_inert_in_every_place_a_model_writes(watched: Page, roomy: LiveServer):
    elsewhere = requests_elsewhere(watched, roomy)
    deltas = [{"content": f"{text}\n\n"} for text in HOSTILE]
    calls = [{"index": 0, "id": "c", "function": {"name": HOSTILE[0], "arguments": HOSTILE[1]}}]
    replay(watched, {"reasoning_content": "\n".join(HOSTILE)}, *deltas, {"tool_calls": calls})
    ask(watched, "<img src=x onerror=owned()>")
    finished(watched)
    watched.get_by_text("Thought").click()
    check_inert(watched)
    assert elsewhere() == []
    expect(watched.get_by_text("<script>owned()</script>", exact=True).first).to_be_visible()
    watched.reload()
    finished(watched)
    check_inert(watched)
    assert elsewhere() == []


@pytest.mark.parametrize("number", [0, 1, 18, 26])
def test_the_real_model_made_to_say_it_does_no_harm_either(watched: Page, roomy: LiveServer, number: int):
    elsewhere = requests_elsewhere(watched, roomy)
    bend(watched, guided_choice=[HOSTILE[number]])
    ask(watched, "Say something hostile")
    expect(finished(watched).locator(".prose")).not_to_be_empty()
    check_inert(watched)
    assert elsewhere() == []


def test_cut_anywhere_in_the_stream_it_is_as_inert(watched: Page):
    text = "\n\n".join(HOSTILE)
    replay(watched, *({"content": text[at : at + 7]} for at in range(0, len(text), 7)))
    ask(watched, "Slowly")
    finished(watched)
    check_inert(watched)


def test_the_policy_stops_what_a_fault_in_the_page_would_let_through(watched: Page, roomy: LiveServer):
    elsewhere = requests_elsewhere(watched, roomy)
    refused = watched.evaluate("""async () => {
      const refused = []
      const attempt = async (name, action) => { try { await action() } catch (error) { refused.push(name) } }
      await attempt('markup', () => { document.createElement('div').innerHTML = '<img src=x onerror=owned()>' })
      await attempt('script', () => { document.createElement('script').text = 'owned()' })
      await attempt('policy', () => trustedTypes.createPolicy('mine', {createHTML: text => text}))
      await attempt('fetch', () => fetch('https://evil.example/'))
      return refused
    }""")
    assert refused == ["markup", "script", "policy", "fetch"]
    assert watched.evaluate("window.ownedBy") is None
    assert [url for url in elsewhere() if not url.startswith(ELSEWHERE)] == []
