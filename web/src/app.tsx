// The frame around everything: conversations at the left, chat or live view at the right.

import { useEffect } from 'preact/hooks'
import { Chat } from './chat/Chat'
import { Conversations } from './chat/Conversations'
import { trouble } from './chat/store'
import { back, cluster, hello, hurry, link, stat, view } from './live/feed'
import { Live } from './live/Live'
import { count, rate } from './format'
import { samples } from './live/feed'
import { chatAddress, drawer, lastChat, route } from './route'
import { forgetKey, hasKey, locked } from './server'
import { SignIn } from './SignIn'
import { Icon } from './Icon'

export function App() {
  const { at } = route.value
  useEffect(() => {
    const close = (event: KeyboardEvent) => event.key === 'Escape' && (drawer.value = false)
    addEventListener('keydown', close)
    return () => removeEventListener('keydown', close)
  }, [])
  if (locked.value) return <SignIn />
  return (
    <>
      <a class="skip" href="#main" onClick={skip}>
        Skip to content
      </a>
      <div class={`frame ${drawer.value ? 'drawn' : ''}`}>
        <Conversations />
        <div class="side">
          <header class="top">
            <button class="icon only-narrow" aria-label="Conversations" aria-expanded={drawer.value} onClick={() => (drawer.value = !drawer.value)}>
              <Icon name="menu" />
            </button>
            <nav aria-label="Views">
              <a href={chatAddress(lastChat.value)} aria-current={at === 'chat' ? 'page' : undefined}>
                Chat
              </a>
              <a href="#/live" aria-current={at === 'live' ? 'page' : undefined}>
                Live
              </a>
            </nav>
            <Pulse />
            {hasKey() && (
              <button
                class="quiet"
                onClick={() => {
                  forgetKey()
                  locked.value = true
                }}
              >
                Sign out
              </button>
            )}
          </header>
          <Notices />
          <main id="main" tabIndex={-1}>
            {at === 'live' ? <Live /> : <Chat />}
          </main>
        </div>
        <div class="veil" onClick={() => (drawer.value = false)} />
      </div>
    </>
  )
}

/** A skip link must not change the route. */
function skip(event: Event): void {
  event.preventDefault()
  document.getElementById('main')?.focus()
}

/** The server in half a line: which model, and what it does just now. */
function Pulse() {
  const now = view.value
  const speed = samples.value.at(-1)?.output ?? 0
  return (
    <p class="pulse">
      <span class={`dot ${link.value}`} />
      <b>{hello.value?.models[0] ?? (link.value === 'down' ? 'no connection' : 'connecting')}</b>
      {cluster.value && link.value === 'up' && (
        <span class="soft only-wide">
          {count(cluster.value.engines.filter(({ up }) => up).length)} of {count(cluster.value.engines.length)} engines
        </span>
      )}
      {now && link.value === 'up' && (
        <span class="soft only-wide">
          {count(stat(now, 'running'))} running
          {stat(now, 'waiting') > 0 && `, ${count(stat(now, 'waiting'))} waiting`}
          {speed > 0.5 && `, ${rate(speed)} tokens/s`}
        </span>
      )}
    </p>
  )
}

const BACK_MS = 6000

function Notices() {
  useEffect(() => {
    if (!back.value) return
    const timer = setTimeout(() => (back.value = 0), BACK_MS)
    return () => clearTimeout(timer)
  }, [back.value])
  return (
    <div class="notices" role="status">
      {link.value === 'down' && (
        <p class="notice bad">
          <span>The server does not answer. The page tries again by itself.</span>
          <button class="quiet" onClick={hurry}>
            Try now
          </button>
        </p>
      )}
      {link.value === 'up' && back.value > 0 && <p class="notice good">The server is back.</p>}
      {trouble.value && <p class="notice bad">{trouble.value}</p>}
    </div>
  )
}
