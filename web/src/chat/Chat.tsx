// One conversation: what was said, and the place to say more.

import { useSignal } from '@preact/signals'
import { useEffect, useLayoutEffect, useRef } from 'preact/hooks'
import { chatAddress, route } from '../route'
import { count } from '../format'
import { Icon } from '../Icon'
import { hello } from '../live/feed'
import { again, isAnswering, say, stop } from './answer'
import { Composer } from './Composer'
import { exportJson, exportMarkdown } from './export'
import { SettingsPanel } from './Settings'
import { conversations, fresh, ours, put, rememberSettings, restored } from './store'
import { TurnView } from './Turn'
import type { Conversation, Settings } from './types'
import { newId } from './types'

export function Chat() {
  const here = route.value
  const id = here.at === 'chat' ? here.id : null
  const draft = useSignal<Conversation>(fresh())
  const showSettings = useSignal(false)
  useEffect(() => {
    if (id === null) draft.value = fresh()
  }, [id])
  const conversation = id === null ? draft.value : conversations.value.find((one) => one.id === id)
  if (!conversation) {
    return restored.value ? <p class="empty">This conversation is not in this browser.</p> : null
  }

  function change(settings: Settings): void {
    rememberSettings(settings)
    const changed = { ...conversation!, settings }
    if (id === null) draft.value = changed
    else put(changed)
  }

  return (
    <div class="chat">
      <div class="tools">
        <h1 class={conversation.title ? '' : 'unseen'}>{conversation.title || 'New conversation'}</h1>
        {conversation.turns.length > 0 && <Export conversation={conversation} />}
        <button
          class={`quiet ${isChanged(conversation.settings) ? 'set' : ''}`}
          aria-expanded={showSettings.value}
          aria-controls="settings"
          onClick={() => (showSettings.value = !showSettings.value)}
        >
          <Icon name="dials" /> Settings
        </button>
      </div>
      {showSettings.value && <SettingsPanel settings={conversation.settings} onChange={change} onClose={() => (showSettings.value = false)} />}
      <Transcript conversation={conversation} />
      <Composer
        key={conversation.id}
        conversation={conversation}
        onSend={(text, files) => {
          const turn = { id: newId(), role: 'user' as const, text, ...(files.length ? { files } : {}) }
          say(conversation, [turn])
          if (id === null) location.hash = chatAddress(conversation.id)
        }}
        onStop={() => stop(conversation.id)}
      />
    </div>
  )
}

function isChanged(settings: Settings): boolean {
  return Object.entries(settings).some(([name, value]) => name !== 'model' && value !== '' && value !== null)
}

function Export({ conversation }: { conversation: Conversation }) {
  const menu = useRef<HTMLDetailsElement>(null)
  const choose = (save: (one: Conversation) => void) => () => {
    save(conversation)
    menu.current!.open = false
  }
  return (
    <details class="menu" ref={menu}>
      <summary class="quiet">
        <Icon name="save" /> Export
      </summary>
      <div>
        <button onClick={choose(exportMarkdown)}>As Markdown</button>
        <button onClick={choose(exportJson)}>As JSON</button>
      </div>
    </details>
  )
}

const NEAR_PX = 80

function Transcript({ conversation }: { conversation: Conversation }) {
  const box = useRef<HTMLDivElement>(null)
  const follows = useRef(true)
  const { turns } = conversation
  const last = turns.at(-1)
  useLayoutEffect(() => {
    if (follows.current && box.current) box.current.scrollTop = box.current.scrollHeight
  }, [last])
  // A new question is looked at, wherever one was.
  useLayoutEffect(() => {
    follows.current = true
    if (box.current) box.current.scrollTop = box.current.scrollHeight
  }, [conversation.id, turns.length])

  const busy = isAnswering(conversation)
  return (
    <div
      class="scroll"
      ref={box}
      tabIndex={0}
      role="region"
      aria-label="Conversation"
      onScroll={({ currentTarget: { scrollHeight, scrollTop, clientHeight } }) => {
        follows.current = scrollHeight - scrollTop - clientHeight < NEAR_PX
      }}
    >
      <div class="column">
        {turns.length === 0 ? (
          <Blank settings={conversation.settings} />
        ) : (
          turns.map((turn, index) => (
            <TurnView
              key={turn.id}
              turn={turn}
              isLast={index === turns.length - 1}
              onAgain={index === turns.length - 1 && !busy ? () => again(conversation) : null}
              onResults={(results) =>
                say(
                  conversation,
                  results.map(({ call, text }) => ({ id: newId(), role: 'tool' as const, text, answers: call })),
                )
              }
            />
          ))
        )}
        {busy && !ours.has(conversation.id) && <p class="soft">Another tab is answering here.</p>}
      </div>
      <p class="unseen" aria-live="polite">
        {last?.role === 'assistant' && last.state !== 'streaming' ? spoken(last.state, last.error, last.numbers?.output) : ''}
      </p>
    </div>
  )
}

function spoken(state: string | undefined, error: string | undefined, output: number | undefined): string {
  if (error) return error
  if (state === 'stopped') return 'The answer was stopped.'
  if (state === 'interrupted') return 'The answer was interrupted.'
  return output === undefined ? 'The answer is complete.' : `The answer is complete, ${count(output)} tokens.`
}

function Blank({ settings }: { settings: Settings }) {
  const told = hello.value
  return (
    <div class="blank">
      <p class="name">{settings.model || told?.models[0] || ' '}</p>
      {told && (
        <p class="soft">
          {count(told.context)} tokens of context, prompt and answer together. The first question about a long text takes
          time; the next ones find it in the cache.
        </p>
      )}
    </div>
  )
}
