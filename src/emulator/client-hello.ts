/** What a client offered, in OpenSSL's names; what has none here is in hex, as `0x0A0A`. */
export interface ClientHelloFacts {
  /** Highest first, such as `['TLSv1.2']`; below that, a client of TLS 1.2 does not say where it ends. */
  readonly versions: readonly string[]
  /** In the client's order, without the signalling value of RFC 5746. */
  readonly suites: readonly string[]
  /** Key exchange groups, in the client's order. */
  readonly groups: readonly string[]
  /** SNI (RFC 6066, section 3). */
  readonly serverName: string | undefined
  /** Whether a session ticket is offered, to resume with. */
  readonly ticket: boolean
}

const SUITES: Readonly<Record<number, string>> = {
  4865: 'TLS_AES_128_GCM_SHA256',
  4866: 'TLS_AES_256_GCM_SHA384',
  4867: 'TLS_CHACHA20_POLY1305_SHA256',
  49200: 'ECDHE-RSA-AES256-GCM-SHA384',
  49199: 'ECDHE-RSA-AES128-GCM-SHA256',
  49192: 'ECDHE-RSA-AES256-SHA384',
  49191: 'ECDHE-RSA-AES128-SHA256',
  49172: 'ECDHE-RSA-AES256-SHA',
  49171: 'ECDHE-RSA-AES128-SHA',
  52392: 'ECDHE-RSA-CHACHA20-POLY1305',
  49196: 'ECDHE-ECDSA-AES256-GCM-SHA384',
  49195: 'ECDHE-ECDSA-AES128-GCM-SHA256',
  49188: 'ECDHE-ECDSA-AES256-SHA384',
  49187: 'ECDHE-ECDSA-AES128-SHA256',
  52393: 'ECDHE-ECDSA-CHACHA20-POLY1305',
  157: 'AES256-GCM-SHA384',
  156: 'AES128-GCM-SHA256',
  61: 'AES256-SHA256',
  60: 'AES128-SHA256',
  53: 'AES256-SHA',
  47: 'AES128-SHA',
}
const GROUPS: Readonly<Record<number, string>> = {
  29: 'X25519',
  30: 'X448',
  23: 'P-256',
  24: 'P-384',
  25: 'P-521',
}
const VERSIONS: Readonly<Record<number, string>> = {
  769: 'TLSv1',
  770: 'TLSv1.1',
  771: 'TLSv1.2',
  772: 'TLSv1.3',
}
const NO_RENEGOTIATION = 0x00ff
const [SERVER_NAME, SUPPORTED_GROUPS, SESSION_TICKET, PRE_SHARED_KEY, SUPPORTED_VERSIONS] = [
  0, 10, 35, 41, 43,
]

/** The handshake message in the TLS records that carry it. */
function messageIn(records: Buffer): Buffer {
  const parts: Buffer[] = []
  for (let at = 0; at + 5 <= records.length; at += 5 + records.readUInt16BE(at + 3)) {
    parts.push(records.subarray(at + 5, at + 5 + records.readUInt16BE(at + 3)))
  }
  return Buffer.concat(parts)
}

const named =
  (names: Readonly<Record<number, string>>) =>
  (id: number): string =>
    names[id] ?? `0x${id.toString(16).toUpperCase().padStart(4, '0')}`

/** Every pair of bytes as a number. */
const pairs = (bytes: Buffer): number[] =>
  Array.from({ length: bytes.length >> 1 }, (_, i) => bytes.readUInt16BE(2 * i))

/** The extensions, as many as are there whole, and the suites (RFC 5246, section 7.4.1.2). */
function partsOf(hello: Buffer): { version: number; suites: number[]; extensions: Map<number, Buffer> } {
  const parts = { version: 0, suites: [] as number[], extensions: new Map<number, Buffer>() }
  try {
    parts.version = hello.readUInt16BE(4)
    // Handshake header, version and random; then session id, cipher suites and compression methods.
    let at = 4 + 2 + 32
    at += 1 + hello.readUInt8(at)
    const end = at + 2 + hello.readUInt16BE(at)
    parts.suites = pairs(hello.subarray(at + 2, end))
    at = end + 1 + hello.readUInt8(end)
    const last = at + 2 + hello.readUInt16BE(at)
    for (at += 2; at < last; at += 4 + hello.readUInt16BE(at + 2)) {
      parts.extensions.set(
        hello.readUInt16BE(at),
        hello.subarray(at + 4, at + 4 + hello.readUInt16BE(at + 2)),
      )
    }
  } catch {
    // It ends before its extensions do; OpenSSL will say so.
  }
  return parts
}

const nameIn = (extension: Buffer | undefined): string | undefined => {
  // A list of one: its length, the type of the name, the length of the name.
  if (extension === undefined || extension.length < 6 || extension[2] !== 0) return undefined
  return extension.toString('latin1', 5, 5 + extension.readUInt16BE(3)).toLowerCase() || undefined
}

/**
 * Reads a ClientHello as the log keeps it: of a resumed session OpenSSL tells the server name only where it was told to
 * remember it. What is missing in a broken one is empty; nothing is thrown.
 */
export function readClientHello(records: Buffer): ClientHelloFacts {
  const { version, suites, extensions } = partsOf(messageIn(records))
  const versions = extensions.get(SUPPORTED_VERSIONS!)
  return {
    versions: (versions === undefined ? [version] : pairs(versions.subarray(1))).map(named(VERSIONS)),
    suites: suites.filter((id) => id !== NO_RENEGOTIATION).map(named(SUITES)),
    groups: pairs((extensions.get(SUPPORTED_GROUPS!) ?? Buffer.alloc(2)).subarray(2)).map(named(GROUPS)),
    serverName: nameIn(extensions.get(SERVER_NAME!)),
    ticket: (extensions.get(SESSION_TICKET!)?.length ?? 0) > 0 || extensions.has(PRE_SHARED_KEY!),
  }
}
