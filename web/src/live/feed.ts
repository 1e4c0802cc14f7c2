// What the server tells of itself, as signals. One stream while the page is looked at, and a few minutes of history.

import { signal } from '@preact/signals'
import { call, events, locked, ServerError } from '../server'

export type Phase = 'waiting' | 'prefill' | 'decode'

export interface RequestView {
  id: string
  phase: Phase
  prompt: number
  computed: number
  output: number
  cached: number
  pages: number
  shared: number
  preemptions: number
  because: string
}

export interface View {
  stats: Record<string, number | string>
  page_bytes: number
  slot_bytes: number
  requests: RequestView[]
}

/** The first event of the stream. */
export interface Hello {
  version: string
  models: string[]
  context: number
  family: string
  because: string[]
  /** Of an engine that hands caches over. */
  role?: string | null
}

/** An engine as a router sees it. What it does not tell is null. */
export interface Engine {
  name: string
  url: string
  role: 'prefill' | 'decode' | 'both'
  up: boolean
  accepting: boolean
  open: number
  pending_tokens: number
  models: string[]
  slots: { total: number; free: number } | null
  pages: { total: number; free: number; tokens: number } | null
  queue: { running: number; waiting: number; uncached_tokens: number; receiving: number; lending: number } | null
  rates: { prefill_tokens_per_second: number; link_bytes_per_second: number } | null
  totals: Record<string, number>
}

export interface Cluster {
  engines: Engine[]
  /** Requests so far; `prefill` is empty where the decode engine read the prompt itself. */
  ways: { prefill: string; decode: string; requests: number }[]
}

/** One moment: seconds since 1970, tokens per second since the moment before, bytes. */
export interface Sample {
  time: number
  output: number | null
  prompt: number | null
  used: number | null
  cached: number | null
}

export const hello = signal<Hello | null>(null)
export const view = signal<View | null>(null)
/** Told by a router, in a view's place. */
export const cluster = signal<Cluster | null>(null)
export const samples = signal<readonly Sample[]>([])
export const link = signal<'connecting' | 'up' | 'down'>('connecting')
/** When the server came back after it was gone. */
export const back = signal(0)

const HISTORY_SECONDS = 300
const PATIENCE_MS = [250, 500, 1000, 2000, 4000]

let stop: AbortController | null = null
let wake: (() => void) | null = null

/** Listens for as long as the page is open; not while nobody sees it. */
export async function follow(): Promise<never> {
  document.addEventListener('visibilitychange', () => (document.hidden ? stop?.abort() : wake?.()))
  let failures = 0
  while (true) {
    if (document.hidden) await pause(Infinity)
    try {
      stop = new AbortController()
      await listen(stop.signal, () => (failures = 0))
      failures = 0
    } catch (error) {
      if (!stop?.signal.aborted) {
        if (!(error instanceof ServerError && error.status === 401)) link.value = 'down'
        failures += 1
      }
    }
    await pause(locked.value ? Infinity : PATIENCE_MS[Math.min(failures, PATIENCE_MS.length - 1)]!)
  }
}

/** Try again now. */
export const hurry = () => wake?.()

async function listen(signal: AbortSignal, heard: () => void): Promise<void> {
  const response = await call('/live', { signal })
  for await (const { name, data } of events(response, signal)) {
    if (name === 'hello') {
      hello.value = JSON.parse(data) as Hello
      if (link.value === 'down') back.value = Date.now()
      link.value = 'up'
      heard()
    } else if (name === 'view') {
      take(JSON.parse(data) as View)
    } else if (name === 'cluster') {
      cluster.value = JSON.parse(data) as Cluster
    }
  }
  throw new ServerError('The server ended the stream.', 0)
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => {
    const timer = ms === Infinity ? undefined : setTimeout(() => wake?.(), ms)
    wake = () => {
      clearTimeout(timer)
      wake = null
      resolve()
    }
  })
}

let before: { time: number; output: number; prompt: number } | null = null

export const stat = (of: View, name: string): number => Number(of.stats[name] ?? 0)

function take(next: View): void {
  view.value = next
  const now = {
    time: Date.now() / 1000,
    output: stat(next, 'generation_tokens_total'),
    prompt: stat(next, 'prompt_tokens_total'),
  }
  // A counter that falls is another process; a long silence is a gap, not a slow second.
  const gap = before === null || now.output < before.output || now.time - before.time > 30
  const passed = before === null ? 1 : Math.max(0.05, now.time - before.time)
  const sample: Sample = {
    time: now.time,
    output: gap ? null : (now.output - before!.output) / passed,
    prompt: gap ? null : (now.prompt - before!.prompt) / passed,
    used: stat(next, 'cache_bytes_used'),
    cached: stat(next, 'cache_bytes_cached'),
  }
  before = now
  const kept = samples.value.filter(({ time }) => time > now.time - HISTORY_SECONDS)
  samples.value = [...kept, sample]
}
