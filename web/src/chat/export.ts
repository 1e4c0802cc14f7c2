// Conversations as files: one as Markdown to read, or as JSON with everything; all of them as JSON.

import { contentOf } from './answer'
import type { Conversation, Turn } from './types'

export function exportMarkdown(conversation: Conversation): void {
  const parts = [`# ${conversation.title}`]
  if (conversation.settings.system) parts.push(`**System**\n\n${conversation.settings.system}`)
  parts.push(...conversation.turns.map(section))
  download(`${fileName(conversation)}.md`, 'text/markdown', `${parts.join('\n\n')}\n`)
}

export function exportJson(conversation: Conversation): void {
  download(`${fileName(conversation)}.json`, 'application/json', json([conversation]))
}

export function exportAll(list: readonly Conversation[]): void {
  download(`perilune-${new Date().toISOString().slice(0, 10)}.json`, 'application/json', json(list))
}

function section(turn: Turn): string {
  const name = { user: 'You', assistant: 'Answer', tool: 'Tool' }[turn.role]
  const parts = [`**${name}**`]
  if (turn.reasoning) parts.push(turn.reasoning.trim().replace(/^/gm, '> '))
  const text = turn.role === 'user' ? contentOf(turn) : turn.text
  if (text) parts.push(text.trim())
  for (const call of turn.calls ?? []) parts.push(`\`${call.name}(${call.arguments})\``)
  if (turn.error) parts.push(`*${turn.error}*`)
  return parts.join('\n\n')
}

function json(list: readonly Conversation[]): string {
  return `${JSON.stringify({ format: 'perilune conversations', version: 1, conversations: list }, null, 1)}\n`
}

function fileName(conversation: Conversation): string {
  return conversation.title.replace(/[^\p{L}\p{N}]+/gu, '-').replace(/^-|-$/g, '').slice(0, 50) || 'conversation'
}

function download(name: string, type: string, text: string): void {
  const address = URL.createObjectURL(new Blob([text], { type }))
  const anchor = Object.assign(document.createElement('a'), { href: address, download: name })
  anchor.click()
  setTimeout(() => URL.revokeObjectURL(address), 10_000)
}
