import { Duplex } from 'node:stream'
import type { FrontConnection } from './listener.ts'

/**
 * A connection's stream as node:http and ws get it. They answer some things by themselves (a ping, a close frame, a
 * malformed request), so it is here that silence is kept and that faults of single bytes happen.
 */
export class OutputGate extends Duplex {
  readonly #connection: FrontConnection
  /** Whether every byte goes in a TLS record of its own. */
  byteByByte = false
  /** How many bytes still pass; what comes after is discarded. */
  remaining = Number.POSITIVE_INFINITY

  /** @param first what was read from the connection before */
  constructor(connection: FrontConnection, first: Buffer) {
    super()
    this.#connection = connection
    const { stream } = connection
    this.on('error', () => undefined)
    stream.on('data', (chunk: Buffer) => {
      if (!connection.mute && !this.push(chunk)) stream.pause()
    })
    stream.once('end', () => this.push(null))
    stream.once('close', () => this.destroy())
    this.push(first)
  }

  override _read(): void {
    this.#connection.stream.resume()
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    const bytes = chunk.subarray(0, Math.min(chunk.length, this.remaining))
    this.remaining -= bytes.length
    if (this.byteByByte) {
      this.#trickle(bytes, done)
      return
    }
    if (!this.#connection.mute) this.#connection.stream.write(bytes)
    // At once, so that nothing is left behind here when the connection falls silent.
    done()
  }

  override _writev(
    chunks: readonly { readonly chunk: Buffer }[],
    done: (error?: Error | null) => void,
  ): void {
    this._write(Buffer.concat(chunks.map(({ chunk }) => chunk)), 'binary', done)
  }

  override _final(done: (error?: Error | null) => void): void {
    if (!this.#connection.mute) this.#connection.stream.end()
    done()
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    if (!this.#connection.mute) this.#connection.stream.destroy()
    done(error)
  }

  #trickle(bytes: Buffer, done: (error?: Error | null) => void): void {
    if (bytes.length === 0 || this.#connection.mute) {
      done()
      return
    }
    this.#connection.stream.write(bytes.subarray(0, 1), (error) => {
      if (error) done(error)
      else this.#trickle(bytes.subarray(1), done)
    })
  }
}
