// What `perilune doctor` finds open on the host, asked for once when the live view is opened.

import { useEffect, useState } from 'preact/hooks'
import { plural } from '../format'
import { call } from '../server'

interface Check {
  id: string
  status: 'fail' | 'warn' | 'unknown'
  says: string
  why: string
  fix: Record<string, string[]> | null
}

interface Report {
  target: string
  verdict: string
  checks: Check[]
}

export function Host() {
  const [report, setReport] = useState<Report | null>(null)
  const [wrong, setWrong] = useState('')
  useEffect(() => {
    call('/doctor')
      .then((response) => response.json())
      .then(setReport, (error: Error) => setWrong(error.message))
  }, [])
  const open = report?.checks.filter(({ status }) => status !== 'unknown') ?? []
  const unknown = (report?.checks.length ?? 0) - open.length
  return (
    <section class="card" aria-labelledby="host">
      <h2 id="host">Host</h2>
      {wrong && <p class="wrong">{wrong}</p>}
      {report && open.length === 0 && <p class="soft">The doctor has nothing to say against it (target {report.target}).</p>}
      {open.map((check) => (
        <details key={check.id} class="check">
          <summary>
            <span class={check.status}>{check.status === 'fail' ? 'wrong' : 'warning'}</span> {check.says} <code>{check.id}</code>
          </summary>
          <p>{check.why}</p>
          {check.fix && <pre tabIndex={0}>{fixOf(check.fix)}</pre>}
        </details>
      ))}
      {unknown > 0 && <p class="soft">{plural(unknown, 'check')} could not be told; perilune doctor says why.</p>}
    </section>
  )
}

/** The same text for every family of distributions is shown once. */
function fixOf(fix: Record<string, string[]>): string {
  const texts = Object.entries(fix).map(([family, lines]) => [family, lines.join('\n')] as const)
  const same = texts.every(([, text]) => text === texts[0]![1])
  return same ? (texts[0]?.[1] ?? '') : texts.map(([family, text]) => `# ${family}\n${text}`).join('\n\n')
}
