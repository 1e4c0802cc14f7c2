// One thing said: by the user, by the model, by a tool.

import { memo } from 'preact/compat'
import { useMemo, useState } from 'preact/hooks'
import { count, rate, seconds } from '../format'
import { blocks, render } from './markdown'
import type { Attached, Call, Numbers, Turn } from './types'

interface Result {
  call: string
  text: string
}

interface Props {
  turn: Turn
  isLast: boolean
  onAgain: (() => void) | null
  onResults: (results: Result[]) => void
}

export const TurnView = memo(
  function TurnView({ turn, isLast, onAgain, onResults }: Props) {
    if (turn.role === 'user') return <Said turn={turn} />
    if (turn.role === 'tool') return <ToolResult turn={turn} />
    return <Answer turn={turn} isLast={isLast} onAgain={onAgain} onResults={onResults} />
  },
  (before, after) => before.turn === after.turn && before.isLast === after.isLast && !before.onAgain === !after.onAgain,
)

const LONG_TEXT = 2400

function Said({ turn }: { turn: Turn }) {
  return (
    <article class="said" aria-label="You">
      {turn.files?.map((file, index) => <FileView key={index} file={file} />)}
      {turn.text && <Folded text={turn.text} />}
    </article>
  )
}

/** A text in the page only as far as anybody reads it: 400 KB would make every scroll slow. */
function Folded({ text }: { text: string }) {
  const [all, setAll] = useState(false)
  const isLong = text.length > LONG_TEXT
  return (
    <>
      <p class="typed">{isLong && !all ? `${text.slice(0, LONG_TEXT / 2)}…` : text}</p>
      {isLong && (
        <button class="quiet" onClick={() => setAll(!all)}>
          {all ? 'Show less' : `Show all ${count(text.length)} characters`}
        </button>
      )}
    </>
  )
}

function FileView({ file }: { file: Attached }) {
  const [open, setOpen] = useState(false)
  return (
    <details class="file" onToggle={({ currentTarget }) => setOpen(currentTarget.open)}>
      <summary>
        {file.name} <span class="soft">{count(file.text.length)} characters</span>
      </summary>
      {open && <pre tabIndex={0}>{file.text}</pre>}
    </details>
  )
}

function ToolResult({ turn }: { turn: Turn }) {
  return (
    <article class="call" aria-label="Result of a tool">
      <p class="soft">Result</p>
      <pre tabIndex={0}>{turn.text}</pre>
    </article>
  )
}

function Answer({ turn, isLast, onAgain, onResults }: Props) {
  const streaming = turn.state === 'streaming'
  return (
    <article class="answer" aria-label="Answer" aria-busy={streaming}>
      {turn.reasoning && (
        <details class="reasoning">
          <summary>{streaming && !turn.text ? 'Thinking' : 'Thought'} <Size numbers={turn.numbers} /></summary>
          <p class="typed">{turn.reasoning}</p>
        </details>
      )}
      {turn.text && <Prose text={turn.text} />}
      {streaming && !turn.text && !turn.reasoning && !turn.calls && <p class="soft waiting">Reading the prompt</p>}
      {turn.calls?.map((call) => <CallView key={call.id} call={call} />)}
      {isLast && !streaming && turn.calls && turn.finish === 'tool_calls' && <Results calls={turn.calls} onResults={onResults} />}
      <Outcome turn={turn} />
      <div class="below">
        {turn.numbers && <NumbersView numbers={turn.numbers} />}
        {!streaming && (
          <span class="acts">
            {turn.text && <Copy text={turn.text} />}
            {onAgain && (
              <button class="quiet" onClick={onAgain}>
                Regenerate
              </button>
            )}
          </span>
        )}
      </div>
    </article>
  )
}

function Size({ numbers }: { numbers: Numbers | undefined }) {
  return numbers?.reasoning ? <span class="soft">{count(numbers.reasoning)} tokens</span> : null
}

function Prose({ text }: { text: string }) {
  const parts = useMemo(() => blocks(text), [text])
  return (
    <div class="prose">
      {parts.map((source, index) => (
        <Block key={index} source={source} />
      ))}
    </div>
  )
}

const Block = memo(function Block({ source }: { source: string }) {
  return <div dangerouslySetInnerHTML={{ __html: render(source) as string }} />
})

function CallView({ call }: { call: Call }) {
  return (
    <details class="call" open>
      <summary>
        calls <code>{call.name}</code>
      </summary>
      <pre tabIndex={0}>{pretty(call.arguments)}</pre>
    </details>
  )
}

function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2)
  } catch {
    return text
  }
}

/** The page runs no tools: whoever has one gives its result here. */
function Results({ calls, onResults }: { calls: Call[]; onResults: (results: Result[]) => void }) {
  const [texts, setTexts] = useState(() => calls.map(() => ''))
  return (
    <form
      class="results"
      onSubmit={(event) => {
        event.preventDefault()
        onResults(calls.map(({ id }, index) => ({ call: id, text: texts[index]! })))
      }}
    >
      {calls.map(({ id, name }, index) => (
        <label key={id}>
          Result of {name}
          <textarea
            rows={2}
            value={texts[index]}
            onInput={({ currentTarget: { value } }) => setTexts(texts.map((text, at) => (at === index ? value : text)))}
          />
        </label>
      ))}
      <button class="quiet">Give to the model</button>
    </form>
  )
}

function Outcome({ turn }: { turn: Turn }) {
  if (turn.error) return <p class="wrong">{turn.error}</p>
  if (turn.state === 'stopped') return <p class="soft">Stopped.</p>
  if (turn.state === 'interrupted') return <p class="wrong">Interrupted: the page was closed or reloaded while this was answered.</p>
  if (turn.finish === 'length') return <p class="soft">Ended by the limit on tokens.</p>
  return null
}

/** Seconds; what came at one blow has no rate. */
const SHORTEST = 0.02

function NumbersView({ numbers }: { numbers: Numbers }) {
  const { prompt, cached, output, first, rest } = numbers
  return (
    <dl class="numbers">
      <div>
        <dt>prompt</dt>
        <dd>{count(prompt)}</dd>
      </div>
      <div>
        <dt>cached</dt>
        <dd>{count(cached)}</dd>
      </div>
      <div>
        <dt>output</dt>
        <dd>{count(output)}</dd>
      </div>
      <div>
        <dt>first token</dt>
        <dd>{seconds(first)}</dd>
      </div>
      {output > 1 && rest > SHORTEST && (
        <div>
          <dt>tokens/s</dt>
          <dd>{rate((output - 1) / rest)}</dd>
        </div>
      )}
    </dl>
  )
}

const COPIED_MS = 1500

function Copy({ text }: { text: string }) {
  const [copied, setCopied] = useState(false)
  if (!navigator.clipboard) return null // not over plain HTTP from another machine
  return (
    <button
      class="quiet"
      onClick={() =>
        void navigator.clipboard.writeText(text).then(() => {
          setCopied(true)
          setTimeout(() => setCopied(false), COPIED_MS)
        })
      }
    >
      {copied ? 'Copied' : 'Copy'}
    </button>
  )
}
