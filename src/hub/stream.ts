import { Duplex } from 'node:stream'
import type { TLSSocket } from 'node:tls'
import type { DpsPhase } from '../errors.ts'
import type { ByteStream } from '../transport/mqtt/session.ts'
import { PacketGuard } from './packet-guard.ts'

const DISCONNECT = Uint8Array.of(0xe0, 0)

/**
 * What MQTT.js reads from and writes to: a TLS socket, or the WebSocket on it, with a guard in front. It never emits an
 * error: what went wrong is told by `onBroken`, once, and 'close' follows.
 */
export class HubStream extends Duplex {
  readonly #below: ByteStream
  readonly #socket: TLSSocket
  readonly #guard: PacketGuard
  #passedBytes = 0
  /** What is going on, for what is found to be wrong. */
  phase: DpsPhase = 'connect'
  /** Told why the stream broke; not when this side ends it. */
  onBroken: (reason: unknown) => void = () => undefined

  constructor(below: ByteStream, socket: TLSSocket, maxPacketBytes: number) {
    super({ autoDestroy: false, emitClose: false })
    this.#below = below
    this.#socket = socket
    this.#guard = new PacketGuard(maxPacketBytes)
    below.on('data', (chunk) => this.#read(chunk))
    // Stays for as long as the socket does: an error that nobody listens to would end the process.
    below.on('error', (error) => this.#break(below.explain?.(error, this.phase) ?? error))
    below.on('end', () => this.#break(undefined))
    const closed = (): void => {
      this.#break(undefined)
      this.emit('close')
    }
    // What is gone already says nothing more.
    if (below.destroyed) queueMicrotask(closed)
    else below.on('close', closed)
  }

  override _read(): void {}

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    this.#below.write(chunk)
    this.#written(chunk.length, done)
  }

  /** A packet is written in parts; they leave together. */
  override _writev(chunks: readonly { readonly chunk: Buffer }[], done: () => void): void {
    const bytes = Buffer.concat(chunks.map(({ chunk }) => chunk))
    this.#below.write(bytes)
    this.#written(bytes.length, done)
  }

  /** Ends in good order, DISCONNECT last. */
  override _final(done: () => void): void {
    if (this.#below.destroyed) done()
    else this.#below.end(DISCONNECT, done)
  }

  override _destroy(_error: Error | null, done: (error?: Error | null) => void): void {
    this.#below.destroy()
    done()
  }

  /** Bytes passed on since the beginning. */
  get passedBytes(): number {
    return this.#passedBytes
  }

  /** Bytes written and not yet passed on. */
  get unsentBytes(): number {
    return this.writableLength + this.#below.writableLength
  }

  #read(chunk: Buffer): void {
    if (this.destroyed) return
    try {
      this.#guard.push(chunk, this.phase)
    } catch (error) {
      this.#break(error)
      return
    }
    this.push(chunk)
  }

  #break(reason: unknown): void {
    if (this.destroyed) return
    this.destroy()
    this.onBroken(reason)
  }

  #written(bytes: number, done: () => void): void {
    const socket = this.#socket
    const passed = (): void => {
      this.#passedBytes += bytes
      done()
    }
    if (!socket.writableNeedDrain || socket.destroyed) {
      passed()
      return
    }
    const settled = (): void => {
      socket.off('drain', settled)
      socket.off('close', settled)
      passed()
    }
    socket.on('drain', settled)
    socket.on('close', settled)
  }
}
