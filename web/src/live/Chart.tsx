// A line or area over the last minutes, drawn by uPlot; its colours are the page's.

import { useEffect, useRef } from 'preact/hooks'
import uPlot from 'uplot'

export interface Line {
  name: string
  colour: string
  values: (number | null)[]
  fill?: boolean
  dashed?: boolean
}

interface Props {
  title: string
  now: string
  times: number[]
  lines: Line[]
  format: (value: number) => string
  note?: string
  /** Distances that lines of the grid may have. */
  steps?: number[]
}

const HEIGHT = 150
/** Widths of the picture in seconds: it grows with what has been seen. */
const SPANS = [60, 120, 300]

export function Chart({ title, now, times, lines, format, note, steps }: Props) {
  const box = useRef<HTMLDivElement>(null)
  const plot = useRef<uPlot | null>(null)

  useEffect(() => {
    const create = () => {
      plot.current?.destroy()
      plot.current = new uPlot(options(box.current!, lines, format, steps), [[], ...lines.map(() => [])], box.current!)
    }
    create()
    const watch = new ResizeObserver(([entry]) => plot.current?.setSize({ width: Math.floor(entry!.contentRect.width), height: HEIGHT }))
    watch.observe(box.current!)
    const dark = matchMedia('(prefers-color-scheme: dark)')
    dark.addEventListener('change', create)
    return () => {
      watch.disconnect()
      dark.removeEventListener('change', create)
      plot.current?.destroy()
    }
  }, [])
  useEffect(() => {
    plot.current?.setData([times, ...lines.map(({ values }) => values)] as uPlot.AlignedData)
  }, [times])

  return (
    <figure class="chart">
      <figcaption>
        <h3>{title}</h3>
        <span class="now">{now}</span>
      </figcaption>
      <div class="plot" ref={box} role="img" aria-label={`${title} over the last minutes; now ${now}`} />
      {note && <p class="soft">{note}</p>}
      {lines.length > 1 && (
        <ul class="key">
          {lines.map(({ name, colour, dashed }) => (
            <li key={name}>
              <svg class="swatch" width="14" height="10" aria-hidden="true">
                <path d="M0 5h14" style={{ stroke: `var(${colour})` }} stroke-width="2" stroke-dasharray={dashed ? '3 2' : undefined} />
              </svg>{' '}
              {name}
            </li>
          ))}
        </ul>
      )}
    </figure>
  )
}

function options(box: HTMLElement, lines: Line[], format: (value: number) => string, steps?: number[]): uPlot.Options {
  const style = getComputedStyle(box)
  const colour = (name: string) => style.getPropertyValue(name).trim()
  const axis: uPlot.Axis = {
    stroke: colour('--soft'),
    font: `11px ${style.fontFamily}`,
    grid: { stroke: colour('--rule'), width: 1 },
    ticks: { show: false },
  }
  return {
    width: box.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    padding: [8, 16, 0, 0],
    scales: {
      x: { time: false, range: (_, first, latest) => [(latest ?? 0) - spanOf((latest ?? 0) - (first ?? 0)), latest ?? 0] },
      y: { range: (_, __, most) => [0, Math.max(1, (most ?? 1) * 1.1)] },
    },
    axes: [
      { ...axis, grid: { show: false }, size: 24, splits, values: (self, places) => places.map((at) => ago((self.scales.x!.max ?? 0) - at)) },
      { ...axis, size: 62, space: 36, ...(steps ? { incrs: steps } : {}), values: (_, splits) => splits.map(format) },
    ],
    series: [
      {},
      ...lines.map(({ colour: name, fill, dashed }) => ({
        stroke: colour(name),
        width: 1.8,
        points: { show: false },
        ...(fill ? { fill: `color-mix(in srgb, ${colour(name)} 18%, transparent)` } : {}),
        ...(dashed ? { dash: [5, 4] } : {}),
      })),
    ],
  }
}

function spanOf(seen: number): number {
  return SPANS.find((span) => seen <= span) ?? SPANS.at(-1)!
}

/** Places on the time axis at round times, the last of them now. */
function splits(self: uPlot): number[] {
  const { min = 0, max = 0 } = self.scales.x!
  const step = max - min > 120 ? 60 : (max - min) / 4
  return [4, 3, 2, 1, 0].map((ago) => max - ago * step).filter((at) => at > min)
}

function ago(seconds: number): string {
  if (seconds < 1) return 'now'
  return seconds < 100 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`
}
