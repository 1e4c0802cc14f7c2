const PATHS = {
  menu: 'M3 5.5h14M3 10h14M3 14.5h14',
  plus: 'M10 4v12M4 10h12',
  send: 'M10 16V4.5M5 9l5-5 5 5',
  stop: 'M6 6h8v8H6z',
  clip: 'M15.5 9.5l-5.6 5.6a3.6 3.6 0 0 1-5-5l6-6a2.4 2.4 0 0 1 3.4 3.4l-6 6a1.2 1.2 0 0 1-1.7-1.7l5.3-5.3',
  dials: 'M4 6h6M14 6h2M4 14h2M10 14h6M12 4v4M8 12v4',
  close: 'M5 5l10 10M15 5L5 15',
  bin: 'M4 6h12M8 6V4h4v2M6 6l.7 10h6.6L14 6',
  save: 'M10 3.5v9M6 9l4 4 4-4M4 16.5h12',
} as const

export function Icon({ name }: { name: keyof typeof PATHS }) {
  return (
    <svg viewBox="0 0 20 20" width="20" height="20" aria-hidden="true" class="line">
      <path d={PATHS[name]} />
    </svg>
  )
}

/** The mark: a moon, its orbit, and the point nearest to it. */
export function Mark() {
  return (
    <svg viewBox="0 0 32 32" width="26" height="26" aria-hidden="true" class="mark">
      <ellipse cx="16" cy="16" rx="14" ry="8.5" transform="rotate(-24 16 16)" />
      <circle class="moon" cx="13.4" cy="17.2" r="5" />
      <circle class="near" cx="4.6" cy="19.6" r="2.6" />
    </svg>
  )
}
