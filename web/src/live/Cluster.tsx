// Several engines as one: who reads prompts, who answers, and what goes between them.

import { bytes, count, percent, plural, seconds } from '../format'
import { hello, stat, type Cluster, type Engine, type View } from './feed'

const HIGH = 92
const GAP = 12

export function ClusterView({ cluster }: { cluster: Cluster }) {
  const left = cluster.engines.filter(({ role }) => role === 'prefill')
  const right = cluster.engines.filter(({ role }) => role !== 'prefill')
  const handed = cluster.ways.filter(({ prefill }) => prefill)
  return (
    <div class="live">
      <h1 class="unseen">Live view</h1>
      <Figures cluster={cluster} />
      <section class="card" aria-labelledby="engines">
        <h2 id="engines">Engines</h2>
        <p class="soft">
          {left.length === 0
            ? 'Each reads its prompts itself.'
            : 'Prompts are read at the left; the cache then goes to the engine at the right, which answers.'}
        </p>
        <div class={`engines ${left.length ? 'pair' : ''}`}>
          {left.length > 0 && (
            <>
              <Column engines={left} cluster={cluster} />
              <Ways left={left} right={right} ways={handed} />
            </>
          )}
          <Column engines={right} cluster={cluster} />
        </div>
      </section>
      {handed.length > 0 && <Handed cluster={cluster} />}
    </div>
  )
}

function Figures({ cluster }: { cluster: Cluster }) {
  const { engines, ways } = cluster
  const sum = (value: (engine: Engine) => number) => engines.reduce((total, engine) => total + value(engine), 0)
  const requests = ways.reduce((total, way) => total + way.requests, 0)
  const handed = ways.reduce((total, way) => total + (way.prefill ? way.requests : 0), 0)
  const figures = [
    ['engines up', `${count(sum(({ up }) => Number(up)))} of ${count(engines.length)}`],
    ['requests under way', count(sum(({ role, open }) => (role === 'prefill' ? 0 : open)))],
    ['prompt tokens to read', count(sum((one) => Math.max(one.pending_tokens, one.queue?.uncached_tokens ?? 0)))],
    ['requests so far', count(requests)],
    ['of them handed over', percent(handed, requests)],
  ]
  return (
    <dl class="figures">
      {figures.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  )
}

function Column({ engines, cluster }: { engines: Engine[]; cluster: Cluster }) {
  return (
    <ul class="column-of">
      {engines.map((engine) => (
        <EngineBox key={engine.name} engine={engine} own={ownOf(engine, cluster)} />
      ))}
    </ul>
  )
}

/** Requests that an engine answered without anybody's help. */
function ownOf(engine: Engine, cluster: Cluster): number {
  return cluster.ways.reduce((sum, way) => sum + (way.decode === engine.name && !way.prefill ? way.requests : 0), 0)
}

const ROLES = { prefill: 'reads prompts', decode: 'answers', both: 'reads and answers' }

function EngineBox({ engine, own }: { engine: Engine; own: number }) {
  const { slots, pages, queue } = engine
  return (
    <li class={`engine ${engine.up ? '' : 'gone'}`} style={{ minHeight: `${HIGH}px` }}>
      <p>
        <span class={`dot ${engine.up ? (engine.accepting ? 'up' : '') : 'down'}`} /> <b>{engine.name}</b>{' '}
        <span class="soft">{engine.up ? (engine.accepting ? ROLES[engine.role] : 'is stopping') : 'does not answer'}</span>
      </p>
      {slots && <Meter name="slots" used={slots.total - slots.free} total={slots.total} />}
      {pages && <Meter name="pages" used={pages.total - pages.free} total={pages.total} />}
      <p class="soft">
        {queue ? `${count(queue.running)} running, ${count(queue.waiting)} waiting` : plural(engine.open, 'request')}
        {own > 0 && engine.role !== 'prefill' && `; ${count(own)} done alone`}
      </p>
    </li>
  )
}

function Meter({ name, used, total }: { name: string; used: number; total: number }) {
  return (
    <p class="meter">
      <span class="soft">{name}</span>
      <progress max={Math.max(1, total)} value={used} aria-label={`${name} in use`} />
      <span>
        {count(used)} of {count(total)}
      </span>
    </p>
  )
}

/** A line for every pair that has worked together, as thick as its share. */
function Ways({ left, right, ways }: { left: Engine[]; right: Engine[]; ways: Cluster['ways'] }) {
  const rows = Math.max(left.length, right.length)
  const height = rows * (HIGH + GAP) - GAP
  const middle = (index: number) => index * (HIGH + GAP) + HIGH / 2
  const most = Math.max(1, ...ways.map(({ requests }) => requests))
  return (
    <svg class="ways" viewBox={`0 0 100 ${height}`} height={height} preserveAspectRatio="none" aria-hidden="true">
      {left.flatMap((one, from) =>
        right.map((other, to) => {
          const way = ways.find(({ prefill, decode }) => prefill === one.name && decode === other.name)
          return (
            <path
              key={`${one.name} ${other.name}`}
              class={way ? 'used' : ''}
              d={`M0 ${middle(from)}C45 ${middle(from)} 55 ${middle(to)} 100 ${middle(to)}`}
              stroke-width={way ? 1.5 + (4.5 * way.requests) / most : 1}
              vector-effect="non-scaling-stroke"
            />
          )
        }),
      )}
    </svg>
  )
}

function Handed({ cluster }: { cluster: Cluster }) {
  const byName = new Map(cluster.engines.map((engine) => [engine.name, engine]))
  return (
    <section class="card" aria-labelledby="transfers">
      <h2 id="transfers">Caches handed over</h2>
      <div class="wide" tabIndex={0} role="region" aria-labelledby="transfers">
        <table>
          <thead>
            <tr>
              <th>from</th>
              <th class="word">to</th>
              <th>requests</th>
              <th>received there</th>
              <th>in all</th>
              <th>on average</th>
              <th>read there after all</th>
            </tr>
          </thead>
          <tbody>
            {cluster.ways
              .filter(({ prefill }) => prefill)
              .map(({ prefill, decode, requests }) => {
                const totals = byName.get(decode)?.totals ?? {}
                const moved = totals.pd_transfers_total ?? 0
                return (
                  <tr key={`${prefill} ${decode}`}>
                    <td>{prefill}</td>
                    <td class="word">{decode}</td>
                    <td>{count(requests)}</td>
                    <td>{count(moved)}</td>
                    <td>{bytes(totals.pd_received_bytes_total ?? 0)}</td>
                    <td>{moved ? seconds((totals.pd_transfer_seconds_total ?? 0) / moved) : '–'}</td>
                    <td>{count(totals.pd_local_fallbacks_total ?? 0)}</td>
                  </tr>
                )
              })}
          </tbody>
        </table>
      </div>
    </section>
  )
}

/** The same from inside one engine of a pair. */
export function Transfers({ view }: { view: View }) {
  if (view.stats.pd_transfers_total === undefined) return null
  const moved = stat(view, 'pd_transfers_total')
  const facts = [
    ['received', `${plural(moved, 'cache')}, ${bytes(stat(view, 'pd_received_bytes_total'))}`],
    ['on average', moved ? seconds(stat(view, 'pd_transfer_seconds_total') / moved) : '–'],
    ['link', `${bytes(stat(view, 'pd_link_bytes_per_second'))}/s`],
    ['being received', count(stat(view, 'pd_receptions'))],
    ['given away', count(stat(view, 'pd_leases_released_total'))],
    ['being lent', count(stat(view, 'pd_leases'))],
    ['read here after all', count(stat(view, 'pd_local_fallbacks_total'))],
    ['failed', count(stat(view, 'pd_failures_total'))],
  ]
  return (
    <section class="card" aria-labelledby="transfers">
      <h2 id="transfers">Caches handed over</h2>
      {hello.value?.role && <p class="soft">This engine’s role: {hello.value.role}.</p>}
      <dl class="facts">
        {facts.map(([name, value]) => (
          <div key={name}>
            <dt class="soft">{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
    </section>
  )
}
