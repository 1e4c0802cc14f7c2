// A colour per running request, kept while it runs.

import type { RequestView } from './feed'

const COLOURS = 5

let given = new Map<string, number>()

/** CSS variables by request id. A request keeps its colour; a new one takes the least used. */
export function coloursOf(requests: readonly RequestView[]): Map<string, string> {
  const next = new Map<string, number>()
  for (const { id } of requests) if (given.has(id)) next.set(id, given.get(id)!)
  for (const { id } of requests) {
    if (next.has(id)) continue
    const used = Array.from({ length: COLOURS }, (_, index) => [...next.values()].filter((value) => value === index).length)
    next.set(id, used.indexOf(Math.min(...used)))
  }
  given = next
  return new Map(Array.from(next, ([id, index]) => [id, `--r${index}`]))
}

/** The two tail parts of an id say which sequence it is: the serial number, and which of several answers. */
export function shortName(id: string): string {
  const [serial, index] = id.split('/').slice(-2)
  return `#${Number(serial) + 1}${index === '0' ? '' : `.${Number(index) + 1}`}`
}
