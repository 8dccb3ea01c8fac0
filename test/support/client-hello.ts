/** A ClientHello as RFC 5246 §7.4.1.2 and RFC 8446 §4.1.2 define it, read from bytes and from nothing else. */
export interface ClientHello {
  /** Bytes on the wire, record header included. */
  readonly size: number
  /** Of the record layer, such as 0x0301. */
  readonly recordVersion: number
  /** `client_version`, such as 0x0303 for TLS 1.2. */
  readonly version: number
  readonly sessionId: Buffer
  readonly suites: readonly number[]
  readonly compressions: readonly number[]
  /** Extension types in order. */
  readonly extensions: readonly number[]
  readonly serverName: string | undefined
  readonly groups: readonly number[]
  readonly signatureAlgorithms: readonly number[]
  readonly alpn: readonly string[]
  /** `supported_versions`, TLS 1.3 only. */
  readonly supportedVersions: readonly number[]
  /** Undefined when the extension is absent; empty when support is announced without a ticket. */
  readonly sessionTicket: Buffer | undefined
  /** Whether a TLS 1.3 pre-shared key is offered. */
  readonly preSharedKey: boolean
}

class Reader {
  readonly #bytes: Buffer
  #at = 0

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  get done(): boolean {
    return this.#at === this.#bytes.length
  }

  uint(size: number): number {
    return this.take(size).readUIntBE(0, size)
  }

  take(length: number): Buffer {
    if (this.#at + length > this.#bytes.length) throw new RangeError('the ClientHello is truncated')
    this.#at += length
    return this.#bytes.subarray(this.#at - length, this.#at)
  }

  /** A vector whose length is in the first `size` bytes. */
  vector(size: number): Buffer {
    return this.take(this.uint(size))
  }

  end(what: string): void {
    if (!this.done) throw new RangeError(`${what} has bytes after its end`)
  }
}

function list(bytes: Buffer, size: number): number[] {
  const reader = new Reader(bytes)
  const values: number[] = []
  while (!reader.done) values.push(reader.uint(size))
  return values
}

/** The length of the first TLS record, or undefined while its header is incomplete. */
export function recordLength(bytes: Buffer): number | undefined {
  return bytes.length < 5 ? undefined : 5 + bytes.readUInt16BE(3)
}

/** Reads the one record that holds a whole ClientHello; throws RangeError for anything else. */
export function parseClientHello(bytes: Buffer): ClientHello {
  const record = new Reader(bytes)
  if (record.uint(1) !== 22) throw new RangeError('not a handshake record')
  const recordVersion = record.uint(2)
  const handshake = new Reader(record.vector(2))
  record.end('the record')
  if (handshake.uint(1) !== 1) throw new RangeError('not a ClientHello')
  const hello = new Reader(handshake.vector(3))
  handshake.end('the handshake message')

  const version = hello.uint(2)
  hello.take(32)
  const sessionId = hello.vector(1)
  const suites = list(hello.vector(2), 2)
  const compressions = list(hello.vector(1), 1)
  const extensions = new Map<number, Buffer>()
  if (!hello.done) {
    const block = new Reader(hello.vector(2))
    while (!block.done) {
      const type = block.uint(2)
      if (extensions.has(type)) throw new RangeError(`extension ${type} is repeated`)
      extensions.set(type, block.vector(2))
    }
  }
  hello.end('the ClientHello')

  const vectorOf = (type: number, lengthSize: number, itemSize: number): number[] => {
    const body = extensions.get(type)
    return body === undefined ? [] : list(new Reader(body).vector(lengthSize), itemSize)
  }
  return {
    size: bytes.length,
    recordVersion,
    version,
    sessionId,
    suites,
    compressions,
    extensions: [...extensions.keys()],
    serverName: serverName(extensions.get(0)),
    groups: vectorOf(10, 2, 2),
    signatureAlgorithms: vectorOf(13, 2, 2),
    alpn: alpn(extensions.get(16)),
    supportedVersions: vectorOf(43, 1, 2),
    sessionTicket: extensions.get(35),
    preSharedKey: extensions.has(41),
  }
}

function serverName(body: Buffer | undefined): string | undefined {
  if (body === undefined) return undefined
  const names = new Reader(new Reader(body).vector(2))
  if (names.uint(1) !== 0) throw new RangeError('the server name is no host name')
  const name = names.vector(2).toString('latin1')
  names.end('the server name list')
  return name
}

function alpn(body: Buffer | undefined): string[] {
  if (body === undefined) return []
  const protocols = new Reader(new Reader(body).vector(2))
  const names: string[] = []
  while (!protocols.done) names.push(protocols.vector(1).toString('latin1'))
  return names
}
