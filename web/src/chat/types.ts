export interface Attached {
  name: string
  text: string
}

export interface Call {
  id: string
  name: string
  arguments: string
}

/** What one answer cost. Seconds: `first` from sending to the first token, `rest` from there to the last. */
export interface Numbers {
  prompt: number
  cached: number
  output: number
  reasoning: number
  first: number
  rest: number
}

export type State = 'streaming' | 'done' | 'stopped' | 'interrupted' | 'failed'

export interface Turn {
  id: string
  role: 'user' | 'assistant' | 'tool'
  text: string
  files?: Attached[]
  reasoning?: string
  calls?: Call[]
  /** For a tool's result: the call it answers. */
  answers?: string
  state?: State
  error?: string
  finish?: string
  numbers?: Numbers
  /** While streaming: when it last went on, so that other tabs see whether it still does. */
  beat?: number
}

/** Sampling as the API names it; what is not set is the server's own. */
export interface Settings {
  model: string
  system: string
  temperature: number | null
  top_p: number | null
  top_k: number | null
  min_p: number | null
  max_tokens: number | null
  seed: number | null
  /** A JSON list of tools in OpenAI's form, as it was typed. */
  tools: string
}

export interface Conversation {
  id: string
  title: string
  created: number
  changed: number
  turns: Turn[]
  settings: Settings
}

export const DEFAULTS: Settings = {
  model: '',
  system: '',
  temperature: null,
  top_p: null,
  top_k: null,
  min_p: null,
  max_tokens: null,
  seed: null,
  tools: '',
}

/** randomUUID is missing where a page was loaded over plain HTTP from another machine. */
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, '0')).join('')
}
