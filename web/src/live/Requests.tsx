// Who runs and who waits: how far each is, what it holds, and why its prompt was fast or slow.

import { count } from '../format'
import { Swatch } from './Arenas'
import { shortName } from './colours'
import { stat, type RequestView, type View } from './feed'

export function Requests({ view, colours }: { view: View; colours: Map<string, string> }) {
  const unnamed = stat(view, 'running') + stat(view, 'waiting') - view.requests.length
  return (
    <section class="card" aria-labelledby="requests">
      <h2 id="requests">Requests</h2>
      {view.requests.length === 0 ? (
        <p class="soft">Nothing runs and nothing waits.</p>
      ) : (
        <div class="wide" tabIndex={0} role="region" aria-labelledby="requests">
          <table>
            <thead>
              <tr>
                <th>request</th>
                <th class="word">now</th>
                <th>prompt</th>
                <th>reused</th>
                <th>output</th>
                <th>pages</th>
                <th class="word">why not more</th>
              </tr>
            </thead>
            <tbody>
              {view.requests.map((one) => (
                <Row key={one.id} one={one} colour={colours.get(one.id)} />
              ))}
            </tbody>
          </table>
        </div>
      )}
      {unnamed > 0 && <p class="soft">and {count(unnamed)} more waiting</p>}
    </section>
  )
}

function Row({ one, colour }: { one: RequestView; colour: string | undefined }) {
  return (
    <tr>
      <td>
        {colour && <Swatch colour={colour} />} {shortName(one.id)}
      </td>
      <td class="word">
        <Now one={one} />
      </td>
      <td>{count(one.prompt)}</td>
      <td>{one.phase === 'waiting' ? '' : count(one.cached)}</td>
      <td>{count(one.output)}</td>
      <td>{one.phase === 'waiting' ? '' : one.shared ? `${count(one.pages)} + ${count(one.shared)}` : count(one.pages)}</td>
      <td class="word soft">
        {one.preemptions > 0 && `made way ${one.preemptions} times; `}
        {one.because.replace(/^.*?reused: /, '')}
      </td>
    </tr>
  )
}

function Now({ one }: { one: RequestView }) {
  if (one.phase === 'waiting') return <span class="soft">waiting</span>
  if (one.phase === 'decode') return <span>answering</span>
  const share = one.computed / Math.max(1, one.prompt)
  const label = `${Math.round(100 * share)} % of the prompt read`
  return (
    <span class="reading">
      <progress max={1} value={share} aria-label={label} /> {Math.round(100 * share)} %
    </span>
  )
}
