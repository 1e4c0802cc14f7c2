import { useState } from 'preact/hooks'
import { Mark } from './Icon'
import { hurry } from './live/feed'
import { call, locked, ServerError, useKey } from './server'

/** Shown while the server asks for an API key that the page does not have. */
export function SignIn() {
  const [key, setKey] = useState('')
  const [keep, setKeep] = useState(false)
  const [wrong, setWrong] = useState('')

  async function enter(event: Event): Promise<void> {
    event.preventDefault()
    useKey(key.trim(), keep)
    try {
      await call('/v1/models')
      locked.value = false
      hurry()
    } catch (error) {
      setWrong(error instanceof ServerError && error.status === 401 ? 'That is not a key of this server.' : String(error))
    }
  }

  return (
    <main class="sign-in">
      <form onSubmit={enter}>
        <h1>
          <Mark /> perilune
        </h1>
        <label>
          API key
          <input type="password" autocomplete="current-password" required value={key} onInput={(event) => setKey(event.currentTarget.value)} />
        </label>
        <label class="check">
          <input type="checkbox" checked={keep} onChange={(event) => setKeep(event.currentTarget.checked)} />
          Keep it in this browser
        </label>
        <p class="wrong" role="alert">
          {wrong}
        </p>
        <button class="main">Continue</button>
      </form>
    </main>
  )
}
