// What the prefix cache did since the start, by reason.

import { count, percent, plural } from '../format'
import { stat, type View } from './feed'

const REASONS = [
  { name: 'hit', colour: '--c2', label: 'hit', means: 'all that can be reused was' },
  { name: 'partial', colour: '--c0', label: 'partial', means: 'the beginning was reused, what follows is new' },
  { name: 'unseen', colour: '--c5', label: 'unseen', means: 'no prompt began like this' },
  { name: 'short', colour: '--cached', label: 'short', means: 'less than one page of 64 tokens' },
  { name: 'no_snapshot', colour: '--c3', label: 'no state', means: 'pages are known, but no state was kept on them' },
  { name: 'evicted', colour: '--c1', label: 'evicted', means: 'it was here and made way' },
]

export function Prefixes({ view }: { view: View }) {
  if (view.stats.prefix_lookups_hit_total === undefined) {
    return (
      <section class="card" aria-labelledby="prefixes">
        <h2 id="prefixes">Prefix cache</h2>
        <p class="soft">It is off.</p>
      </section>
    )
  }
  const counts = REASONS.map((reason) => ({ ...reason, value: stat(view, `prefix_lookups_${reason.name}_total`) }))
  const all = counts.reduce((sum, { value }) => sum + value, 0)
  const reused = stat(view, 'prefix_state_matched_tokens_total')
  const computed = stat(view, 'prompt_tokens_total')
  let left = 0
  return (
    <section class="card" aria-labelledby="prefixes">
      <h2 id="prefixes">Prefix cache</h2>
      <p class="soft">
        {all === 0
          ? 'No prompt has come yet.'
          : `${plural(all, 'prompt')}; ${percent(reused, reused + computed)} of their ${count(reused + computed)} tokens were not computed.`}
      </p>
      <svg class="share" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">
        <rect width="100" height="4" style={{ fill: 'var(--free)' }} />
        {counts.map(({ name, colour, value }) => {
          const width = all ? (100 * value) / all : 0
          left += width
          return <rect key={name} x={left - width} width={width} height="4" style={{ fill: `var(${colour})` }} />
        })}
      </svg>
      <table class="reasons">
        <tbody>
          {counts.map(({ name, label, colour, means, value }) => (
            <tr key={name} class={value ? '' : 'none'}>
              <th scope="row">
                <svg class="swatch" width="10" height="10" aria-hidden="true">
                  <rect width="10" height="10" rx="2" style={{ fill: `var(${colour})` }} />
                </svg>{' '}
                {label}
              </th>
              <td>{count(value)}</td>
              <td class="word soft">{means}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  )
}
