// System prompt and sampling of one conversation. An empty field leaves the choice to the server.

import { useState } from 'preact/hooks'
import { hello } from '../live/feed'
import { toolsOf } from './answer'
import type { Settings } from './types'

interface Props {
  settings: Settings
  onChange: (settings: Settings) => void
  onClose: () => void
}

interface NumberField {
  name: 'temperature' | 'top_p' | 'top_k' | 'min_p' | 'max_tokens' | 'seed'
  label: string
  hint: string
  min: number
  max?: number
  step: number
}

const NUMBERS: NumberField[] = [
  { name: 'temperature', label: 'Temperature', hint: '0 always takes the likeliest token', min: 0, max: 2, step: 0.05 },
  { name: 'top_p', label: 'Top p', hint: 'the likeliest tokens up to this share', min: 0.01, max: 1, step: 0.01 },
  { name: 'top_k', label: 'Top k', hint: 'only so many of the likeliest', min: 1, step: 1 },
  { name: 'min_p', label: 'Min p', hint: 'none below this part of the likeliest', min: 0, max: 1, step: 0.01 },
  { name: 'max_tokens', label: 'Most tokens', hint: 'of one answer', min: 1, step: 1 },
  { name: 'seed', label: 'Seed', hint: 'the same one gives the same answer', min: 0, step: 1 },
]

export function SettingsPanel({ settings, onChange, onClose }: Props) {
  const models = hello.value?.models ?? []
  return (
    <section id="settings" class="settings" aria-label="Settings" onKeyDown={(event) => event.key === 'Escape' && onClose()}>
      <div class="column">
        {models.length > 1 && (
          <label>
            Model
            <select value={settings.model} onChange={({ currentTarget }) => onChange({ ...settings, model: currentTarget.value })}>
              <option value="">{models[0]}</option>
              {models.slice(1).map((name) => (
                <option key={name}>{name}</option>
              ))}
            </select>
          </label>
        )}
        <label>
          System prompt
          <textarea rows={3} value={settings.system} onInput={({ currentTarget }) => onChange({ ...settings, system: currentTarget.value })} />
        </label>
        <div class="grid">
          {NUMBERS.map((field) => (
            <NumberInput key={field.name} field={field} value={settings[field.name]} onChange={(value) => onChange({ ...settings, [field.name]: value })} />
          ))}
        </div>
        <Tools text={settings.tools} onChange={(tools) => onChange({ ...settings, tools })} />
      </div>
    </section>
  )
}

function NumberInput({ field, value, onChange }: { field: NumberField; value: number | null; onChange: (value: number | null) => void }) {
  const { name, label, hint, min, max, step } = field
  return (
    <label>
      {label}
      <input
        type="number"
        inputMode="decimal"
        placeholder="server’s"
        aria-describedby={`hint-${name}`}
        min={min}
        max={max}
        step={step}
        value={value ?? ''}
        onInput={({ currentTarget: input }) => {
          const given = input.valueAsNumber
          if (!Number.isNaN(given) && input.validity.valid) onChange(given)
          else if (input.value === '' && !input.validity.badInput) onChange(null)
        }}
      />
      <small id={`hint-${name}`}>{hint}</small>
    </label>
  )
}

function Tools({ text, onChange }: { text: string; onChange: (text: string) => void }) {
  const [wrong, setWrong] = useState('')
  return (
    <label>
      Tools
      <textarea
        rows={2}
        class="mono"
        spellcheck={false}
        placeholder='[{"type": "function", "function": {"name": "…", "parameters": {…}}}]'
        aria-describedby="hint-tools"
        value={text}
        onInput={({ currentTarget: { value } }) => {
          onChange(value)
          try {
            if (value.trim()) toolsOf(value)
            setWrong('')
          } catch (error) {
            setWrong((error as Error).message)
          }
        }}
      />
      <small id="hint-tools" class={wrong ? 'wrong' : ''}>
        {wrong || 'A JSON list in OpenAI’s form. The page runs none: a call is shown, and you give its result.'}
      </small>
    </label>
  )
}
