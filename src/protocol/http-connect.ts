import { DpsError } from '../errors.ts'
import { parseRetryAfter } from './retry-after.ts'

/** All heads of one answer together, interim ones included, in bytes. Real ones have a few hundred. */
export const MAX_CONNECT_HEAD_BYTES = 16_384

/** `host:port` as HTTP writes it: an IPv6 address in brackets, no port where it is the scheme's own (RFC 3986 §3.2). */
export function authority(host: string, port: number | undefined): string {
  return `${host.includes(':') ? `[${host}]` : host}${port === undefined ? '' : `:${port}`}`
}

/**
 * The request for a tunnel (RFC 9110 §9.3.6).
 *
 * @param authorization the value of `Proxy-Authorization`, if there is one
 */
export function connectRequest(host: string, port: number, authorization?: string): string {
  const target = authority(host, port)
  const credentials = authorization === undefined ? '' : `Proxy-Authorization: ${authorization}\r\n`
  return `CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n${credentials}\r\n`
}

/** The final answer to CONNECT. */
export interface ConnectReply {
  /** 200 to 599. Any 2xx opens the tunnel. */
  readonly status: number
  /** As the proxy sent it, ISO 8859-1, not made printable. */
  readonly reason: string
  /** Authentication schemes of `Proxy-Authenticate`, lower case. */
  readonly schemes: readonly string[]
  /** `Retry-After`, where it is a number of seconds. */
  readonly retryAfterMs: number | undefined
}

interface Head {
  readonly status: number
  readonly reason: string
  readonly schemes: string[]
  retryAfterMs: number | undefined
  fields: number
}

const LF = 0x0a
const CR = 0x0d
const TAB = 0x09
const DEL = 0x7f
const STATUS_LINE = /^HTTP\/1\.[01] ([1-5]\d\d)(?: (.*))?$/
const FIELD = /^([!#$%&'*+.^_`|~\w-]+):[\t ]*(.*)$/
const SCHEME = /^[!#$%&'*+.^_`|~\w-]{1,40}(?= |$)/

/**
 * Reads the answer to CONNECT as it arrives, in pieces of any size. HTTP/1.0 and 1.1; interim answers are skipped; a bare
 * LF ends a line as well (RFC 9112 §2.2). What precedes the end of the head is all that is read: a refusal's body is not.
 */
export class ConnectReplyReader {
  readonly #proxy: string
  #bytes = 0
  #line = ''
  #head: Head | undefined

  /** @param proxy how messages name the proxy */
  constructor(proxy: string) {
    this.#proxy = proxy
  }

  /**
   * The reply, once its head is complete.
   *
   * @throws DpsError PROTOCOL_VIOLATION, phase `proxy`, at the first byte that is not HTTP, for a head of more than
   *   MAX_CONNECT_HEAD_BYTES, and for bytes after the head of a 2xx: in a tunnel to TLS the client speaks first
   */
  push(chunk: Uint8Array): ConnectReply | undefined {
    for (const [index, byte] of chunk.entries()) {
      if (++this.#bytes > MAX_CONNECT_HEAD_BYTES) {
        throw this.#violation(`sent a head of more than ${MAX_CONNECT_HEAD_BYTES} bytes`)
      }
      if (byte !== LF) {
        this.#collect(byte)
        continue
      }
      const line = this.#line.endsWith('\r') ? this.#line.slice(0, -1) : this.#line
      this.#line = ''
      const reply = this.#take(line)
      if (reply === undefined) continue
      if (reply.status < 300 && index + 1 < chunk.length) {
        throw this.#violation('sent bytes of its own into the tunnel')
      }
      return reply
    }
    return undefined
  }

  #collect(byte: number): void {
    const control = (byte < 0x20 && byte !== CR && byte !== TAB) || byte === DEL
    if (control || this.#line.endsWith('\r')) throw this.#violation('sent a control character')
    this.#line += String.fromCharCode(byte)
    if (this.#head !== undefined) return
    // What speaks another protocol is told by its first byte, not by the silence after its greeting.
    if (this.#line.length <= 7 && !'HTTP/1.'.startsWith(this.#line))
      throw this.#violation('did not answer with HTTP/1')
  }

  #take(line: string): ConnectReply | undefined {
    if (this.#head === undefined) {
      const [, status, reason = ''] = STATUS_LINE.exec(line) ?? []
      if (status === undefined) throw this.#violation('sent a malformed status line')
      this.#head = { status: Number(status), reason, schemes: [], retryAfterMs: undefined, fields: 0 }
      return undefined
    }
    const head = this.#head
    if (line !== '') {
      this.#field(head, line)
      return undefined
    }
    if (head.status >= 200) {
      const { status, reason, schemes, retryAfterMs } = head
      return { status, reason, schemes, retryAfterMs }
    }
    if (head.status === 101) throw this.#violation('switched to a protocol that was not asked for')
    this.#head = undefined
    return undefined
  }

  #field(head: Head, line: string): void {
    // A folded line goes on with the field before it (RFC 9112 §5.2); no field that is read here is folded.
    if (head.fields > 0 && /^[\t ]/.test(line)) return
    const [, name, value = ''] = FIELD.exec(line) ?? []
    if (name === undefined) throw this.#violation('sent a malformed header field')
    head.fields++
    switch (name.toLowerCase()) {
      case 'proxy-authenticate': {
        const scheme = SCHEME.exec(value)?.[0]
        if (scheme !== undefined) head.schemes.push(scheme.toLowerCase())
        break
      }
      case 'retry-after':
        head.retryAfterMs = parseRetryAfter(value)
        break
    }
  }

  #violation(what: string): DpsError {
    return new DpsError(
      'PROTOCOL_VIOLATION',
      'proxy',
      `the proxy ${this.#proxy} ${what} in answer to CONNECT`,
      {
        hint: 'What answers there does not work as an HTTP proxy: check the address and the port in `proxy`.',
      },
    )
  }
}
