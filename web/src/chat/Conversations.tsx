// The list at the left: conversations by day, and taking them out of the browser.

import { chatAddress, drawer, route } from '../route'
import { day } from '../format'
import { Icon, Mark } from '../Icon'
import { exportAll } from './export'
import { conversations, remove } from './store'
import type { Conversation } from './types'

export function Conversations() {
  const here = route.value
  const current = here.at === 'chat' ? here.id : null
  return (
    <aside class="drawer" aria-label="Conversations">
      <div class="brand">
        <Mark />
        <span>perilune</span>
      </div>
      <a class="new" href={chatAddress(null)} onClick={() => (drawer.value = false)}>
        <Icon name="plus" /> New conversation
      </a>
      <div class="list">
        {byDay(conversations.value).map(([label, list]) => (
          <section key={label}>
            <h2>{label}</h2>
            <ul>
              {list.map((one) => (
                <li key={one.id}>
                  <a href={chatAddress(one.id)} aria-current={one.id === current ? 'page' : undefined}>
                    {one.title}
                  </a>
                  <button class="icon" aria-label={`Delete “${one.title}”`} onClick={() => forget(one, one.id === current)}>
                    <Icon name="bin" />
                  </button>
                </li>
              ))}
            </ul>
          </section>
        ))}
      </div>
      <p class="foot">
        Kept in this browser only.
        {conversations.value.length > 0 && (
          <button class="quiet" onClick={() => exportAll(conversations.value)}>
            Export all
          </button>
        )}
      </p>
    </aside>
  )
}

function forget(one: Conversation, isOpen: boolean): void {
  if (!confirm(`Delete “${one.title}”? It is kept nowhere else.`)) return
  remove(one.id)
  if (isOpen) location.hash = chatAddress(null)
}

function byDay(list: readonly Conversation[]): [string, Conversation[]][] {
  const days = new Map<string, Conversation[]>()
  for (const one of list) {
    const label = day(one.changed)
    days.set(label, [...(days.get(label) ?? []), one])
  }
  return [...days]
}
