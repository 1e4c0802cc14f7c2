// Where one types. Long pastes and dropped files become attachments: no textarea stays quick with 400 KB in it.

import { useSignal } from '@preact/signals'
import { useEffect, useRef } from 'preact/hooks'
import { count, percent } from '../format'
import { Icon } from '../Icon'
import { hello } from '../live/feed'
import { isAnswering } from './answer'
import type { Attached, Conversation } from './types'

const LONG_PASTE = 8000
const MOST_BYTES = 12 * 1024 * 1024

interface Props {
  conversation: Conversation
  onSend: (text: string, files: Attached[]) => void
  onStop: () => void
}

export function Composer({ conversation, onSend, onStop }: Props) {
  const text = useSignal('')
  const files = useSignal<Attached[]>([])
  const refused = useSignal('')
  const over = useSignal(false)
  const area = useRef<HTMLTextAreaElement>(null)
  const picker = useRef<HTMLInputElement>(null)
  const busy = isAnswering(conversation)

  useEffect(() => {
    if (matchMedia('(pointer: fine)').matches) area.current?.focus()
  }, [])

  const attach = (file: Attached) => (files.value = [...files.value, file])

  async function take(list: Iterable<File>): Promise<void> {
    refused.value = ''
    for (const file of list) {
      if (file.size > MOST_BYTES) {
        refused.value = `${file.name} is larger than 12 MiB.`
        continue
      }
      const content = await file.text()
      if (content.includes('\0')) refused.value = `${file.name} is not a text file.`
      else attach({ name: file.name, text: content })
    }
  }

  function send(): void {
    if (busy || (!text.value.trim() && !files.value.length)) return
    onSend(text.value, files.value)
    text.value = ''
    files.value = []
    refused.value = ''
    area.current?.focus()
  }

  return (
    <form
      class={`composer ${over.value ? 'over' : ''}`}
      aria-label="Message"
      onSubmit={(event) => {
        event.preventDefault()
        send()
      }}
      onKeyDown={(event) => event.key === 'Escape' && busy && onStop()}
      onDragOver={(event) => {
        event.preventDefault()
        over.value = true
      }}
      onDragLeave={() => (over.value = false)}
      onDrop={(event) => {
        event.preventDefault()
        over.value = false
        void take(event.dataTransfer?.files ?? [])
      }}
    >
      {files.value.length > 0 && (
        <ul class="chips">
          {files.value.map((file, index) => (
            <li key={index}>
              <span>{file.name}</span> <span class="soft">{count(file.text.length)} characters</span>
              <button
                type="button"
                class="icon"
                aria-label={`Remove ${file.name}`}
                onClick={() => (files.value = files.value.filter((one) => one !== file))}
              >
                <Icon name="close" />
              </button>
            </li>
          ))}
        </ul>
      )}
      <textarea
        ref={area}
        rows={1}
        aria-label="Your message"
        placeholder="Ask something"
        value={text.value}
        onInput={({ currentTarget }) => (text.value = currentTarget.value)}
        onPaste={(event) => {
          const pasted = event.clipboardData?.getData('text/plain') ?? ''
          if (pasted.length <= LONG_PASTE) return
          event.preventDefault()
          attach({ name: 'Pasted text', text: pasted })
        }}
        onKeyDown={(event) => {
          if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return
          event.preventDefault()
          send()
        }}
      />
      <div class="row">
        <input
          ref={picker}
          type="file"
          multiple
          hidden
          onChange={({ currentTarget }) => {
            void take(currentTarget.files ?? []).then(() => (currentTarget.value = ''))
          }}
        />
        <button type="button" class="icon" aria-label="Attach a text file" onClick={() => picker.current?.click()}>
          <Icon name="clip" />
        </button>
        <Room conversation={conversation} draft={text.value.length + files.value.reduce((sum, one) => sum + one.text.length, 0)} />
        {busy ? (
          <button type="button" class="main round" aria-label="Stop" onClick={onStop}>
            <Icon name="stop" />
          </button>
        ) : (
          <button class="main round" aria-label="Send" disabled={!text.value.trim() && !files.value.length}>
            <Icon name="send" />
          </button>
        )}
      </div>
      <p class="wrong" role="alert">
        {refused.value}
      </p>
    </form>
  )
}

const USUAL_CHARACTERS = 4

/** How much of the context is taken; what is not sent yet is guessed from what was. */
function Room({ conversation, draft }: { conversation: Conversation; draft: number }) {
  const context = hello.value?.context
  if (!context) return <span class="room" />
  const latest = conversation.turns.findLast(({ numbers }) => numbers)?.numbers
  const taken = latest ? latest.prompt + latest.output : 0
  const guess = Math.round(draft / USUAL_CHARACTERS)
  const total = taken + guess
  const share = Math.min(1, total / context)
  const words = `${guess ? 'about ' : ''}${count(total)} of ${count(context)} tokens`
  return (
    <span class={`room ${total > context ? 'full' : ''}`}>
      <svg viewBox="0 0 60 4" width="60" height="4" aria-hidden="true">
        <rect class="track" width="60" height="4" rx="2" />
        <rect class="taken" width={60 * share} height="4" rx="2" />
      </svg>
      <span title={`${percent(total, context)} of the context`}>{words}</span>
      {total > context && <b> more than fits</b>}
    </span>
  )
}
