// Where one is, in the address: `#/live`, `#/chat/ID`, or nothing for a new conversation.

import { signal } from '@preact/signals'

export type Route = { at: 'live' } | { at: 'chat'; id: string | null }

export const route = signal<Route>(read())
/** The conversation one came from. */
export const lastChat = signal<string | null>(route.value.at === 'chat' ? route.value.id : null)
/** The list of conversations, on a narrow screen. */
export const drawer = signal(false)

addEventListener('hashchange', () => {
  const next = read()
  if (next.at === 'chat') lastChat.value = next.id
  route.value = next
  drawer.value = false
})

function read(): Route {
  const [, place, id] = location.hash.split('/')
  return place === 'live' ? { at: 'live' } : { at: 'chat', id: place === 'chat' && id ? id : null }
}

export const chatAddress = (id: string | null) => (id ? `#/chat/${id}` : '#/')
