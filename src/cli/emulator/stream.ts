import { fstatSync } from 'node:fs'
import { Socket } from 'node:net'
import { kit } from '../kit.ts'
import type { Output } from '../output.ts'

const STDOUT = 1
const MOST_WAITING = 1024 * 1024
const PATIENCE_MS = 1000

/** Standard output for what goes on and on. */
export interface Stream {
  line(text: string): void
  /** Takes no more, and waits a moment for the reader of what was said. */
  close(): Promise<void>
}

/**
 * A reader that stands still, such as a pager, stops neither the emulator nor its end: of what it leaves, 1 MiB waits for
 * it, and `leftOut` tells it how many lines do not.
 */
export function openStream(output: Output, leftOut: (lines: number) => string): Stream {
  // A file takes what comes, and so does a terminal: one that is stopped goes on at Ctrl-C.
  if (!isPipe()) return { line: output.result, close: async () => {} }
  let missing = 0
  // Made for the first line: with it goes standard output, on which an error may still have to be told.
  let pipe: Socket | undefined
  const open = () => {
    const made = new Socket({ fd: STDOUT, readable: false, writable: true })
    // Nobody reads any more.
    return made.on('error', () => {})
  }
  return {
    line: (text) => {
      pipe ??= open()
      if (pipe.writableLength > MOST_WAITING) missing++
      else {
        pipe.write(missing === 0 ? `${text}\n` : `${leftOut(missing)}\n${text}\n`)
        missing = 0
      }
    },
    close: async () => {
      if ((pipe?.writableLength ?? 0) > 0) {
        await new Promise<void>((done) => {
          const disarm = kit.systemClock.after(PATIENCE_MS, done)
          pipe?.write('', () => {
            disarm()
            done()
          })
        })
      }
      pipe?.destroy()
    },
  }
}

function isPipe(): boolean {
  try {
    const kind = fstatSync(STDOUT)
    return kind.isFIFO() || kind.isSocket()
  } catch {
    return false
  }
}
