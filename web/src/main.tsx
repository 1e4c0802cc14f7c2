import 'uplot/dist/uPlot.min.css'
import './style.css'
import { render } from 'preact'
import { App } from './app'
import { restore } from './chat/store'
import { follow } from './live/feed'

void restore()
void follow()
const root = document.getElementById('page')!
root.replaceChildren()
render(<App />, root)
