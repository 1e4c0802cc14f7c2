// Both arenas, to scale: one area per byte for pages and for slots. A cell is a page (or several) or a row.

import { useEffect, useLayoutEffect, useRef } from 'preact/hooks'
import { useSignal } from '@preact/signals'
import { bytes, count, plural } from '../format'
import { stat, type RequestView, type View } from './feed'
import { shortName } from './colours'

/** So many pages or rows in a row belong to one owner, drawn in one colour. */
interface Band {
  places: number
  colour: string
}

interface Arena {
  total: number
  each: number
  bands: Band[]
}

const HEIGHT = 132
const GAP = 14
const LEAST_CELL = 5

export function Arenas({ view, colours }: { view: View; colours: Map<string, string> }) {
  const running = view.requests.filter(({ phase }) => phase !== 'waiting')
  const pages = pagesOf(view, running, colours)
  const slots = slotsOf(view, running, colours)
  const canvas = useRef<HTMLCanvasElement>(null)
  const width = useSignal(0)
  const scheme = useSignal(0)

  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => (width.value = Math.floor(entry!.contentRect.width)))
    watch.observe(canvas.current!.parentElement!)
    const dark = matchMedia('(prefers-color-scheme: dark)')
    const redraw = () => (scheme.value += 1)
    dark.addEventListener('change', redraw)
    return () => {
      watch.disconnect()
      dark.removeEventListener('change', redraw)
    }
  }, [])
  useLayoutEffect(() => {
    if (width.value > 0) draw(canvas.current!, width.value, [pages, slots])
  }, [view, width.value, scheme.value])

  const planned = stat(view, 'cache_bytes_planned')
  const used = stat(view, 'cache_bytes_used')
  const cached = stat(view, 'cache_bytes_cached')
  return (
    <figure class="arenas">
      <figcaption>
        <h2>Memory</h2>
        <p class="soft">
          {bytes(planned)} planned and allocated: {bytes(used)} held by requests, {bytes(cached)} kept for prompts to come.
        </p>
      </figcaption>
      <div class="map">
        <canvas ref={canvas} role="img" aria-label={spoken(view, running)} />
      </div>
      <dl class="halves">
        <div>
          <dt>Pages</dt>
          <dd>
            {count(stat(view, 'pages_total'))} × {bytes(view.page_bytes)}: {count(stat(view, 'pages_used'))} in use,{' '}
            {count(stat(view, 'pages_cached'))} cached, {count(free(pages))} free
          </dd>
        </div>
        {slots.total > 0 && (
          <div>
            <dt>Slots</dt>
            <dd>
              {count(slots.total)} × {bytes(view.slot_bytes)}: {plural(stat(view, 'slots_used'), 'request')},{' '}
              {plural(stat(view, 'snapshots'), 'snapshot')}, {count(free(slots))} free
            </dd>
          </div>
        )}
      </dl>
      <ul class="key">
        {running.slice(0, 8).map(({ id }) => (
          <li key={id}>
            <Swatch colour={colours.get(id)!} /> request {shortName(id)}
          </li>
        ))}
        <li>
          <Swatch colour="--shared" /> cached, being read
        </li>
        <li>
          <Swatch colour="--cached" /> cached
        </li>
        <li>
          <Swatch colour="--free" /> free
        </li>
      </ul>
    </figure>
  )
}

export function Swatch({ colour }: { colour: string }) {
  return (
    <svg class="swatch" width="10" height="10" aria-hidden="true">
      <rect width="10" height="10" rx="2" style={{ fill: `var(${colour})` }} />
    </svg>
  )
}

/** Own pages by request; then what several may read; then what nobody reads just now. */
function pagesOf(view: View, running: RequestView[], colours: Map<string, string>): Arena {
  const bands = running.map(({ id, pages }) => ({ places: pages, colour: colours.get(id)! }))
  const own = bands.reduce((sum, { places }) => sum + places, 0)
  bands.push({ places: Math.max(0, stat(view, 'pages_used') - own), colour: '--shared' })
  bands.push({ places: stat(view, 'pages_cached'), colour: '--cached' })
  return { total: stat(view, 'pages_total'), each: view.page_bytes, bands }
}

function slotsOf(view: View, running: RequestView[], colours: Map<string, string>): Arena {
  const total = view.slot_bytes > 0 ? stat(view, 'slots_total') + stat(view, 'snapshot_slots') : 0
  const bands = running.map(({ id }) => ({ places: 1, colour: colours.get(id)! }))
  bands.push({ places: Math.max(0, stat(view, 'slots_used') - running.length), colour: '--shared' })
  bands.push({ places: stat(view, 'snapshots'), colour: '--cached' })
  return { total, each: view.slot_bytes, bands }
}

function free({ total, bands }: Arena): number {
  return Math.max(0, total - bands.reduce((sum, { places }) => sum + places, 0))
}

function spoken(view: View, running: RequestView[]): string {
  const own = running.map(({ id, pages, shared }) => `request ${shortName(id)} ${plural(pages, 'page')} and ${shared} shared`)
  const rest = `${count(stat(view, 'pages_cached'))} pages and ${plural(stat(view, 'snapshots'), 'snapshot')} cached`
  return `Memory by owner: ${[...own, rest].join('; ')}.`
}

function draw(canvas: HTMLCanvasElement, width: number, arenas: Arena[]): void {
  const present = arenas.filter(({ total, each }) => total * each > 0)
  const ratio = devicePixelRatio
  canvas.width = Math.round(width * ratio)
  canvas.height = Math.round(HEIGHT * ratio)
  canvas.style.width = `${width}px`
  canvas.style.height = `${HEIGHT}px`
  const context = canvas.getContext('2d')!
  context.scale(ratio, ratio)
  const style = getComputedStyle(canvas)
  const whole = present.reduce((sum, { total, each }) => sum + total * each, 0)
  const room = width - GAP * (present.length - 1)
  let left = 0
  for (const arena of present) {
    const share = (room * arena.total * arena.each) / whole
    drawArena(context, style, arena, left, share)
    left += share + GAP
  }
}

/** Cells fill columns from the top and columns from the left, so that an owner is a band. */
function drawArena(context: CanvasRenderingContext2D, style: CSSStyleDeclaration, arena: Arena, left: number, width: number): void {
  const area = width * HEIGHT
  const group = Math.max(1, Math.ceil((arena.total * LEAST_CELL ** 2) / area))
  const cells = Math.ceil(arena.total / group)
  const side = Math.sqrt(area / cells)
  const columns = Math.max(1, Math.round(width / side))
  const rows = Math.ceil(cells / columns)
  const wide = width / Math.ceil(cells / rows)
  const high = HEIGHT / rows
  const gap = Math.min(wide, high) >= 9 ? 2 : 1
  const owners = arena.bands.map(({ places, colour }) => ({ end: places, colour: style.getPropertyValue(colour) }))
  owners.reduce((sum, owner) => (owner.end += sum), 0)
  const empty = style.getPropertyValue('--free')
  let owner = 0
  for (let cell = 0; cell < cells; cell += 1) {
    const middle = (cell + 0.5) * group
    while (owner < owners.length && owners[owner]!.end <= middle) owner += 1
    context.fillStyle = owners[owner]?.colour ?? empty
    const x = left + Math.floor(cell / rows) * wide
    const y = (cell % rows) * high
    context.fillRect(x, y, Math.max(0.5, wide - gap), Math.max(0.5, high - gap))
  }
}
