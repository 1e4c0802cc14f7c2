// Numbers as people read them. Units as everywhere in perilune: binary bytes, seconds.

const integer = new Intl.NumberFormat('en')

export function count(value: number): string {
  return integer.format(Math.round(value))
}

export function bytes(value: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let at = 0
  while (value >= 1024 && at < units.length - 1) {
    value /= 1024
    at += 1
  }
  return `${at === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[at]}`
}

export function seconds(value: number): string {
  if (value < 0.0995) return `${Math.round(value * 1000)} ms`
  return value < 9.95 ? `${value.toFixed(value < 0.995 ? 2 : 1)} s` : `${Math.round(value)} s`
}

export function rate(value: number): string {
  if (value === 0) return '0'
  return value < 9.95 ? value.toFixed(1) : count(value)
}

export function percent(part: number, whole: number): string {
  return whole > 0 ? `${Math.round((100 * part) / whole)} %` : '–'
}

export function plural(value: number, one: string, many = `${one}s`): string {
  return `${count(value)} ${value === 1 ? one : many}`
}

export function day(time: number): string {
  const date = new Date(time)
  const days = Math.floor((new Date().setHours(0, 0, 0, 0) - new Date(time).setHours(0, 0, 0, 0)) / 86_400_000)
  if (days === 0) return 'Today'
  if (days === 1) return 'Yesterday'
  return date.toLocaleDateString('en', { day: 'numeric', month: 'long', year: 'numeric' })
}
