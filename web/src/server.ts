// The one way to the server: adds the API key, turns every failure into a ServerError that can be shown.

import { signal } from '@preact/signals'

const KEY = 'perilune.key'

/** The server asked for an API key and has none that it knows. */
export const locked = signal(false)

let key = localStorage.getItem(KEY) ?? sessionStorage.getItem(KEY) ?? ''

/** `keep`: also when the browser is closed. */
export function useKey(given: string, keep: boolean): void {
  forgetKey()
  key = given
  ;(keep ? localStorage : sessionStorage).setItem(KEY, given)
}

export function forgetKey(): void {
  key = ''
  localStorage.removeItem(KEY)
  sessionStorage.removeItem(KEY)
}

export const hasKey = () => key !== ''

export class ServerError extends Error {
  constructor(
    message: string,
    /** An HTTP status; 0 if there was no answer. */
    readonly status: number,
  ) {
    super(message)
  }
}

export const LOST = 'The connection to the server was lost'

export async function call(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers)
  if (key) headers.set('Authorization', `Bearer ${key}`)
  if (init.body) headers.set('Content-Type', 'application/json')
  let response: Response
  try {
    response = await fetch(path, { ...init, headers })
  } catch (error) {
    if (init.signal?.aborted) throw error
    throw new ServerError('The server does not answer. Is it still running?', 0)
  }
  if (response.ok) return response
  if (response.status === 401) locked.value = true
  throw new ServerError(await reason(response), response.status)
}

async function reason(response: Response): Promise<string> {
  try {
    return messageOf(await response.json()) ?? `The server answered ${response.status}.`
  } catch {
    return `The server answered ${response.status}.`
  }
}

/** What an error envelope says, if `body` is one. */
export function messageOf(body: unknown): string | null {
  const message = (body as { error?: { message?: unknown } } | null)?.error?.message
  return typeof message === 'string' ? message : null
}

export interface ServerEvent {
  name: string
  data: string
}

/** Server-sent events of a response. A connection that breaks is a ServerError; one that was aborted ends as fetch does. */
export async function* events(response: Response, signal: AbortSignal): AsyncGenerator<ServerEvent> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ''
  try {
    while (true) {
      const { done, value } = await reader.read()
      if (done) return
      const parts = (rest + value).split('\n\n')
      rest = parts.pop()!
      for (const event of parts.map(parse)) if (event.data) yield event // a comment keeps a connection alive
    }
  } catch (error) {
    if (signal.aborted || error instanceof ServerError) throw error
    throw new ServerError(`${LOST}.`, 0)
  } finally {
    void reader.cancel().catch(() => undefined)
  }
}

function parse(part: string): ServerEvent {
  const event: ServerEvent = { name: 'message', data: '' }
  for (const line of part.split('\n')) {
    if (line.startsWith('event: ')) event.name = line.slice(7)
    else if (line.startsWith('data: ')) event.data += (event.data && '\n') + line.slice(6)
  }
  return event
}
