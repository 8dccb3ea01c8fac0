import { main } from './main.ts'

// Not `process.exit`: what is left to do is done, and the process ends because there is nothing more.
void main(process.argv.slice(2), process.env).then((code) => {
  process.exitCode = code
})
