// The live view: what the engine does now, where its memory goes, and why prompts were fast or slow.

import { bytes, count, percent, rate } from '../format'
import { Arenas } from './Arenas'
import { Chart } from './Chart'
import { coloursOf } from './colours'
import { ClusterView, Transfers } from './Cluster'
import { cluster, hello, link, samples, stat, view } from './feed'
import { Host } from './Host'
import { Prefixes } from './Prefixes'
import { Requests } from './Requests'

export function Live() {
  const now = view.value
  if (cluster.value) return <ClusterView cluster={cluster.value} />
  if (!now) return <p class="empty">{link.value === 'down' ? 'The server does not answer.' : 'Asking the engine…'}</p>
  const colours = coloursOf(now.requests.filter(({ phase }) => phase !== 'waiting'))
  return (
    <div class="live">
      <h1 class="unseen">Live view</h1>
      <Figures />
      <Arenas view={now} colours={colours} />
      <Charts />
      <Requests view={now} colours={colours} />
      <Transfers view={now} />
      <div class="two">
        <Prefixes view={now} />
        <Host />
      </div>
      <Plan />
    </div>
  )
}

function Figures() {
  const now = view.value!
  const latest = samples.value.at(-1)
  const used = stat(now, 'cache_bytes_used')
  const reused = stat(now, 'prefix_state_matched_tokens_total')
  const figures = [
    ['tokens/s', rate(latest?.output ?? 0)],
    ['prompt tokens/s', rate(latest?.prompt ?? 0)],
    ['running', `${count(stat(now, 'running'))} of ${count(stat(now, 'slots_total'))}`],
    ['waiting', count(stat(now, 'waiting'))],
    ['memory in use', percent(used, stat(now, 'cache_bytes_planned'))],
    ['from cache', percent(reused, reused + stat(now, 'prompt_tokens_total'))],
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

function Charts() {
  const history = samples.value
  const latest = history.at(-1)
  const planned = stat(view.value!, 'cache_bytes_planned')
  const times = history.map(({ time }) => time)
  return (
    <div class="charts">
      <Chart
        title="Output tokens/s"
        now={rate(latest?.output ?? 0)}
        note="of all requests together"
        times={times}
        format={rate}
        lines={[{ name: 'output', colour: '--c0', values: history.map(({ output }) => output), fill: true }]}
      />
      <Chart
        title="Prompt tokens/s"
        now={rate(latest?.prompt ?? 0)}
        note="computed; what the cache had is not in it"
        times={times}
        format={rate}
        lines={[{ name: 'prompt', colour: '--c2', values: history.map(({ prompt }) => prompt), fill: true }]}
      />
      <Chart
        title="Memory"
        now={bytes((latest?.used ?? 0) + (latest?.cached ?? 0))}
        times={times}
        format={bytes}
        steps={BINARY}
        lines={[
          { name: 'with cached', colour: '--shared', values: history.map(({ used, cached }) => (used ?? 0) + (cached ?? 0)), fill: true },
          { name: 'in use', colour: '--c0', values: history.map(({ used }) => used), fill: true },
          { name: 'planned', colour: '--c4', values: history.map(() => planned), dashed: true },
        ]}
      />
    </div>
  )
}

const BINARY = Array.from({ length: 50 }, (_, power) => 2 ** power)

function Plan() {
  const told = hello.value
  if (!told) return null
  return (
    <details class="plan">
      <summary>What was planned, and why</summary>
      <ul>
        {told.because.map((line) => (
          <li key={line}>{line}</li>
        ))}
      </ul>
      <p class="soft">
        perilune {told.version}, {told.family}. The numbers above are those of <a href="/metrics">/metrics</a>.
      </p>
    </details>
  )
}
