import { ifStillBusy } from '../clock.ts'
import { EXIT_OF_SIGNAL } from './exit-codes.ts'
import { main } from './main.ts'

const PATIENCE_MS = 300

// Not `process.exit`: what is left to do is done, and the process ends because there is nothing more.
void main(process.argv.slice(2), process.env).then((code) => {
  process.exitCode = code
  const signal = Object.entries(EXIT_OF_SIGNAL).find(([, exit]) => exit === code)?.[0]
  // Node wants to set the terminal right as it ends, and aborts where that is gone.
  if (signal === 'SIGHUP') process.kill(process.pid, signal)
  // A name that is being looked up keeps the process: nothing calls that off, and it may take half a minute.
  else if (signal !== undefined) ifStillBusy(PATIENCE_MS, () => process.kill(process.pid, signal))
})
