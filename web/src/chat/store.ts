// Conversations, kept in this browser and nowhere else. Other tabs of the same browser see every change.

import { signal } from '@preact/signals'
import type { Conversation, Settings, Turn } from './types'
import { DEFAULTS, newId } from './types'

const STALE_MS = 4000
const SAVE_MS = 700
const LAST_SETTINGS = 'perilune.settings'

/** Newest first. */
export const conversations = signal<readonly Conversation[]>([])
export const restored = signal(false)
/** Why nothing can be kept; empty if all is well. */
export const trouble = signal('')

/** Conversations that this tab is answering in: nobody else may call these interrupted. */
export const ours = new Set<string>()

const others = new BroadcastChannel('perilune')
const timers = new Map<string, ReturnType<typeof setTimeout>>()
let database: IDBDatabase | null = null

export async function restore(): Promise<void> {
  try {
    database = await open()
    show((await done(objects('readonly').getAll())) as Conversation[])
  } catch (error) {
    trouble.value = `This browser keeps no conversations: ${error instanceof Error ? error.message : error}`
  }
  others.onmessage = ({ data }) => void refresh(data as string)
  addEventListener('pagehide', () => [...timers.keys()].forEach(save))
  setInterval(closeStale, 1000)
  closeStale()
  restored.value = true
}

export function find(id: string): Conversation | undefined {
  return conversations.peek().find((one) => one.id === id)
}

/** Not kept until something is said in it. Settings are those last used. */
export function fresh(): Conversation {
  const now = Date.now()
  return { id: newId(), title: '', created: now, changed: now, turns: [], settings: lastSettings() }
}

function lastSettings(): Settings {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(LAST_SETTINGS) ?? '{}') }
  } catch {
    return DEFAULTS
  }
}

export function rememberSettings(settings: Settings): void {
  localStorage.setItem(LAST_SETTINGS, JSON.stringify(settings))
}

/** Shown at once, written soon; `now`: written at once. */
export function put(conversation: Conversation, now = false): void {
  show([conversation, ...conversations.peek().filter(({ id }) => id !== conversation.id)])
  if (now) save(conversation.id)
  else if (!timers.has(conversation.id)) timers.set(conversation.id, setTimeout(save, SAVE_MS, conversation.id))
}

export function remove(id: string): void {
  clearTimeout(timers.get(id))
  timers.delete(id)
  show(conversations.peek().filter((one) => one.id !== id))
  if (database) void done(objects('readwrite').delete(id)).then(() => others.postMessage(id))
}

function save(id: string): void {
  clearTimeout(timers.get(id))
  timers.delete(id)
  const conversation = find(id)
  if (!database || !conversation) return
  done(objects('readwrite').put(conversation)).then(
    () => others.postMessage(id),
    (error: Error) => (trouble.value = `This conversation could not be kept: ${error.message}`),
  )
}

async function refresh(id: string): Promise<void> {
  if (!database || timers.has(id)) return
  const theirs = (await done(objects('readonly').get(id))) as Conversation | undefined
  const rest = conversations.peek().filter((one) => one.id !== id)
  show(theirs ? [theirs, ...rest] : rest)
}

/** An answer that no tab goes on with any more was interrupted: its tab was closed or reloaded. */
function closeStale(): void {
  for (const conversation of conversations.peek()) {
    const last = conversation.turns.at(-1)
    if (last?.state === 'streaming' && !ours.has(conversation.id) && Date.now() - (last.beat ?? 0) > STALE_MS) {
      put(withLast(conversation, { ...last, state: 'interrupted' }), true)
    }
  }
}

export function withLast(conversation: Conversation, turn: Turn): Conversation {
  return { ...conversation, turns: [...conversation.turns.slice(0, -1), turn] }
}

function show(list: readonly Conversation[]): void {
  conversations.value = [...list].sort((a, b) => b.changed - a.changed)
}

function open(): Promise<IDBDatabase> {
  const request = indexedDB.open('perilune', 1)
  request.onupgradeneeded = () => request.result.createObjectStore('conversations', { keyPath: 'id' })
  return done(request)
}

function objects(mode: IDBTransactionMode): IDBObjectStore {
  return database!.transaction('conversations', mode).objectStore('conversations')
}

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error)
  })
}
