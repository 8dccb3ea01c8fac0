import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { DpsError } from '../../../src/errors.ts'
import {
  authority,
  type ConnectReply,
  ConnectReplyReader,
  connectRequest,
  MAX_CONNECT_HEAD_BYTES,
} from '../../../src/protocol/http-connect.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'

const bytes = (text: string) => Buffer.from(text, 'latin1')
const read = (...chunks: readonly string[]): ConnectReply | undefined => {
  const reader = new ConnectReplyReader('proxy.test:3128')
  let reply: ConnectReply | undefined
  for (const chunk of chunks) reply ??= reader.push(bytes(chunk))
  return reply
}
const OK = 'HTTP/1.1 200 Connection established\r\n\r\n'

describe('connectRequest', () => {
  it('names the target twice and no more', () => {
    expect(connectRequest('dps.test', 8883)).toBe(
      'CONNECT dps.test:8883 HTTP/1.1\r\nHost: dps.test:8883\r\n\r\n',
    )
  })

  it('puts an IPv6 address in brackets', () => {
    expect(authority('2001:db8::1', 443)).toBe('[2001:db8::1]:443')
    expect(authority('2001:db8::1', undefined)).toBe('[2001:db8::1]')
    expect(connectRequest('::1', 443)).toBe('CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n')
  })

  it('sends credentials at once', () => {
    expect(connectRequest('dps.test', 443, 'Basic dTpw')).toContain(
      '\r\nProxy-Authorization: Basic dTpw\r\n\r\n',
    )
  })
})

describe('ConnectReplyReader', () => {
  it('reads an answer in pieces of any size', () => {
    const head = `HTTP/1.1 100 Continue\r\nX: 1\r\n\r\n${OK}`
    fc.assert(
      fc.property(fc.array(fc.nat(head.length), { maxLength: 12 }), (cuts) => {
        const at = [0, ...cuts.sort((a, b) => a - b), head.length]
        const chunks = at.slice(1).map((end, i) => head.slice(at[i], end))
        expect(read(...chunks)).toMatchObject({ status: 200, reason: 'Connection established' })
      }),
    )
  })

  it.each([
    ['HTTP/1.0 200 OK\r\n\r\n', 200, 'OK'],
    ['HTTP/1.1 200\r\n\r\n', 200, ''],
    ['HTTP/1.1 200 \r\n\r\n', 200, ''],
    ['HTTP/1.1 204 No Content\r\nA:\r\nB : \r\n', undefined, undefined],
    ['HTTP/1.1 200 OK\nVia: x\n\n', 200, 'OK'],
    ['HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n', 200, 'OK'],
    ['HTTP/1.1 200 OK\r\nVia: a,\r\n b\r\n\r\n', 200, 'OK'],
    ['HTTP/1.1 403 G\u00e9n\u00e9ral\r\nContent-Length: 3\r\n\r\nbye', 403, 'G\u00e9n\u00e9ral'],
  ])('takes %j', (head, status, reason) => {
    if (status === undefined) expect(() => read(head)).toThrow(DpsError)
    else expect(read(head)).toMatchObject({ status, reason })
  })

  it('waits for the whole head', () => {
    for (let end = 0; end < OK.length; end++) expect(read(OK.slice(0, end))).toBeUndefined()
    expect(read(OK)).toBeDefined()
  })

  it('tells which authentication is wanted, and how long to wait', () => {
    expect(
      read(
        'HTTP/1.1 407 No\r\nproxy-authenticate: Negotiate\r\nProxy-Authenticate: Basic realm="a"\r\nProxy-Authenticate:\r\n\r\n',
      ),
    ).toMatchObject({ status: 407, schemes: ['negotiate', 'basic'], retryAfterMs: undefined })
    expect(read('HTTP/1.1 503 No\r\nRetry-After: 7\r\n\r\n')).toMatchObject({ retryAfterMs: 7000 })
    expect(read('HTTP/1.1 503 No\r\nRetry-After: soon\r\n\r\n')).toMatchObject({ retryAfterMs: undefined })
  })

  it.each([
    ['another protocol, at its first byte', 'S'],
    ['TLS, at its first byte', '\x15\x03'],
    ['an empty line first', '\r\n'],
    ['HTTP/2', 'HTTP/2 200 OK\r\n'],
    ['HTTP/1.2', 'HTTP/1.2 200 OK\r\n'],
    ['a status of two digits', 'HTTP/1.1 20 OK\r\n'],
    ['a status of four digits', 'HTTP/1.1 2000 OK\r\n'],
    ['a status of the sixth class', 'HTTP/1.1 600 OK\r\n'],
    ['two spaces before the status', 'HTTP/1.1  200 OK\r\n'],
    ['a field without a colon', 'HTTP/1.1 200 OK\r\nnonsense\r\n'],
    ['a field without a name', 'HTTP/1.1 200 OK\r\n: x\r\n'],
    ['a space before the colon', 'HTTP/1.1 200 OK\r\nVia : x\r\n'],
    ['a folded line that continues nothing', 'HTTP/1.1 200 OK\r\n x\r\n'],
    ['a bare CR', 'HTTP/1.1 200 OK\rVia: x\r\n'],
    ['a NUL', 'HTTP/1.1 200 O\0K\r\n'],
    ['an escape sequence', 'HTTP/1.1 200 \x1b[2J\r\n'],
    ['a switch of protocols', 'HTTP/1.1 101 Switching Protocols\r\n\r\n'],
    ['bytes after the head', `${OK}x`],
    ['a second answer after the head', OK + OK],
    ['a line without end', `HTTP/1.1 200 ${'x'.repeat(MAX_CONNECT_HEAD_BYTES)}`],
    ['fields without end', `HTTP/1.1 200 OK\r\n${'A: b\r\n'.repeat(MAX_CONNECT_HEAD_BYTES / 6)}`],
    ['interim answers without end', 'HTTP/1.1 100 Continue\r\n\r\n'.repeat(MAX_CONNECT_HEAD_BYTES / 24)],
  ])('refuses %s', async (_, head) => {
    const error = await expectDpsError(() => read(head), 'PROTOCOL_VIOLATION', 'proxy')
    expect(error.message).toContain('the proxy proxy.test:3128')
    expect(error.hint).toContain('`proxy`')
  })

  it('takes a head of the largest size and no byte more', async () => {
    const empty = 'HTTP/1.1 200 OK\r\nA: \r\n\r\n'
    const full = empty.replace('A: ', `A: ${'b'.repeat(MAX_CONNECT_HEAD_BYTES - empty.length)}`)
    expect(read(full)).toMatchObject({ status: 200 })
    await expectDpsError(() => read(full.replace('b', 'bb')), 'PROTOCOL_VIOLATION', 'proxy')
  })

  it('throws nothing but its own error, whatever comes', () => {
    const piece = fc.oneof(
      fc.constantFrom(
        'HTTP/1.1 ',
        '200',
        ' ',
        '\r\n',
        '\n',
        '\r',
        'Proxy-Authenticate: ',
        'Retry-After: 9',
        '\t',
      ),
      fc.string({ unit: 'binary', maxLength: 8 }),
    )
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 20 }), (pieces) => {
        try {
          read(...pieces)
        } catch (error) {
          expect(DpsError.is(error)).toBe(true)
        }
      }),
    )
  })
})
