// From a conversation to its next answer: the request, and the stream read into a turn.

import { call, events, LOST, messageOf, ServerError } from '../server'
import { find, ours, put, withLast } from './store'
import type { Call, Conversation, Numbers, Turn } from './types'
import { newId } from './types'

const SHOW_MS = 60

const running = new Map<string, AbortController>()

/** Ends this tab's answer in a conversation; what has come so far stays. */
export const stop = (id: string) => running.get(id)?.abort()

/** Whether this tab or another one is answering. */
export function isAnswering(conversation: Conversation): boolean {
  return conversation.turns.at(-1)?.state === 'streaming'
}

/** Says something and has it answered. */
export function say(conversation: Conversation, turns: Turn[]): void {
  const title = conversation.title || titleOf(turns[0]!)
  void answer({ ...conversation, title, turns: [...conversation.turns, ...turns] })
}

/** Has the last thing said answered once more. */
export function again(conversation: Conversation): void {
  const last = conversation.turns.findLastIndex(({ role }) => role !== 'assistant')
  void answer({ ...conversation, turns: conversation.turns.slice(0, last + 1) })
}

async function answer(conversation: Conversation): Promise<void> {
  const controller = new AbortController()
  running.set(conversation.id, controller)
  ours.add(conversation.id)
  const turn: Turn = { id: newId(), role: 'assistant', text: '', state: 'streaming', beat: Date.now() }
  conversation = { ...conversation, changed: Date.now(), turns: [...conversation.turns, turn] }
  put(conversation, true)
  const reading = new Reading(turn)
  const publish = () => {
    const current = find(conversation.id)
    if (current?.turns.at(-1)?.id === turn.id) put(withLast(current, reading.turn()))
    else controller.abort() // deleted, or another tab went on
  }
  const timer = setInterval(publish, SHOW_MS)
  try {
    const body = JSON.stringify(request(conversation))
    const response = await call('/v1/chat/completions', { method: 'POST', body, signal: controller.signal })
    for await (const { data } of events(response, controller.signal)) reading.take(data)
    reading.end()
  } catch (error) {
    reading.fail(error, controller.signal.aborted)
  } finally {
    clearInterval(timer)
    running.delete(conversation.id)
    ours.delete(conversation.id)
    const current = find(conversation.id)
    if (current?.turns.at(-1)?.id === turn.id) put({ ...withLast(current, reading.turn()), changed: Date.now() }, true)
  }
}

/** One answer as it arrives. */
class Reading {
  private readonly sent = performance.now()
  private firstAt = 0
  private lastAt = 0
  private text = ''
  private reasoning = ''
  private readonly calls: Call[] = []
  private usage: Usage | null = null
  private finish: string | undefined
  private state: Turn['state'] = 'streaming'
  private error: string | undefined
  private complete = false

  constructor(private readonly begun: Turn) {}

  take(data: string): void {
    if (data === '[DONE]') {
      this.complete = true
      return
    }
    const chunk = JSON.parse(data) as Chunk
    const message = messageOf(chunk)
    if (message !== null) throw new ServerError(message, 500)
    if (chunk.usage) this.usage = chunk.usage
    const choice = chunk.choices[0]
    if (!choice) return
    this.lastAt = performance.now()
    this.firstAt ||= this.lastAt
    this.text += choice.delta.content ?? ''
    this.reasoning += choice.delta.reasoning_content ?? choice.delta.reasoning ?? ''
    for (const part of choice.delta.tool_calls ?? []) {
      const known = (this.calls[part.index] ??= { id: '', name: '', arguments: '' })
      known.id ||= part.id ?? ''
      known.name += part.function.name ?? ''
      known.arguments += part.function.arguments ?? ''
    }
    this.finish = choice.finish_reason ?? this.finish
  }

  end(): void {
    if (!this.complete) throw new ServerError(`${LOST}.`, 0)
    this.state = 'done'
  }

  fail(error: unknown, aborted: boolean): void {
    if (aborted) {
      this.state = 'stopped'
      return
    }
    this.state = 'failed'
    this.error = error instanceof ServerError ? error.message : `The answer could not be read: ${String(error)}`
    if (this.error.startsWith(LOST)) {
      this.error = `${LOST} while it was answering. What had arrived is above; the answer is not complete.`
    }
  }

  turn(): Turn {
    const { state, error, finish, text } = this
    const turn: Turn = { ...this.begun, text, state, error, finish, beat: Date.now() }
    if (this.reasoning) turn.reasoning = this.reasoning
    if (this.calls.length) turn.calls = this.calls.map((one) => ({ ...one }))
    if (this.usage && this.firstAt) turn.numbers = this.numbers(this.usage)
    return turn
  }

  private numbers(usage: Usage): Numbers {
    return {
      prompt: usage.prompt_tokens,
      cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
      output: usage.completion_tokens,
      reasoning: usage.completion_tokens_details?.reasoning_tokens ?? 0,
      first: (this.firstAt - this.sent) / 1000,
      rest: (this.lastAt - this.firstAt) / 1000,
    }
  }
}

function request(conversation: Conversation): object {
  const { settings } = conversation
  const set = (name: 'temperature' | 'top_p' | 'top_k' | 'min_p' | 'max_tokens' | 'seed') =>
    settings[name] === null ? {} : { [name]: settings[name] }
  return {
    ...(settings.model ? { model: settings.model } : {}),
    messages: [
      ...(settings.system ? [{ role: 'system', content: settings.system }] : []),
      ...conversation.turns.slice(0, -1).map(message),
    ],
    ...(settings.tools.trim() ? { tools: toolsOf(settings.tools) } : {}),
    ...set('temperature'),
    ...set('top_p'),
    ...set('top_k'),
    ...set('min_p'),
    ...set('max_tokens'),
    ...set('seed'),
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  }
}

/** Throws ServerError for what is no JSON list. */
export function toolsOf(text: string): unknown[] {
  let tools: unknown
  try {
    tools = JSON.parse(text)
  } catch (error) {
    throw new ServerError(`The tools in the settings are no JSON: ${(error as Error).message}`, 0)
  }
  if (!Array.isArray(tools)) throw new ServerError('The tools in the settings are no JSON list.', 0)
  return tools
}

function message(turn: Turn): object {
  if (turn.role === 'tool') return { role: 'tool', tool_call_id: turn.answers, content: turn.text }
  if (turn.role === 'user') return { role: 'user', content: contentOf(turn) }
  const calls = turn.calls?.map((one) => ({
    id: one.id,
    type: 'function',
    function: { name: one.name, arguments: one.arguments },
  }))
  return { role: 'assistant', content: turn.text, ...(calls ? { tool_calls: calls } : {}) }
}

/** Attached files come first, so that conversations about the same file begin alike and find it in the prefix cache. */
export function contentOf(turn: Turn): string {
  const files = (turn.files ?? []).map(({ name, text }) => {
    const longest = Math.max(2, ...Array.from(text.matchAll(/`{3,}/g), ([fence]) => fence.length))
    const fence = '`'.repeat(longest + 1)
    return `${name}:\n\n${fence}\n${text}\n${fence}\n\n`
  })
  return files.join('') + turn.text
}

function titleOf(turn: Turn): string {
  const line = (turn.text || turn.files?.[0]?.name || '').trim().split('\n')[0]!
  return line.length > 80 ? `${line.slice(0, 79).trimEnd()}…` : line || 'Conversation'
}

interface Usage {
  prompt_tokens: number
  completion_tokens: number
  prompt_tokens_details?: { cached_tokens?: number } | null
  completion_tokens_details?: { reasoning_tokens?: number } | null
}

interface Chunk {
  choices: {
    delta: {
      content?: string | null
      reasoning_content?: string | null
      reasoning?: string | null
      tool_calls?: { index: number; id?: string; function: { name?: string; arguments?: string } }[]
    }
    finish_reason?: string | null
  }[]
  usage?: Usage | null
}
