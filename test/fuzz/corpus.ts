// Byte-level seeds: what a service, a gateway in between, or an attacker behind a stolen certificate may send. They are
// sent as they are, and mutated.

const json = (value: unknown) => JSON.stringify(value)

export const BODIES: readonly string[] = [
  json({ operationId: '5.0123456789abcdef.b1e02da8-0000-0000-0000-000000000000', status: 'assigning' }),
  json({
    status: 'assigned',
    registrationState: {
      registrationId: 'fuzz',
      assignedHub: 'hub.azure-devices.net',
      deviceId: 'fuzz',
      status: 'assigned',
      payload: { Kraków: '東京', '\ud83c\udfed': [1, null, { deep: true }] },
    },
  }),
  json({ status: 'failed', registrationState: { errorCode: 400207, errorMessage: 'x' } }),
  json({ errorCode: 401002, trackingId: 't', message: 'm', timestampUtc: '2026-11-24T00:00:00.0000000Z' }),
  '{"status":"assigned","registrationState":{"__proto__":{"assignedHub":"h"},"constructor":{}}}',
  '{"status":"assigned","registrationState":[[[[[[[[]]]]]]]]}',
  `${'['.repeat(5000)}${']'.repeat(5000)}`,
  '\ufeff{"status":"assigning","operationId":"x"}',
  '{"status":1e999,"operationId":-0}',
  'null',
  '',
  ' ',
]

export const TOPICS: readonly ((rid: string) => string)[] = [
  (rid) => `$dps/registrations/res/200/?$rid=${rid}`,
  (rid) => `$dps/registrations/res/202/?$rid=${rid}&retry-after=0`,
  (rid) => `$dps/registrations/res/429/?retry-after=soon&$rid=${rid}`,
  (rid) => `$dps/registrations/res/401/?$RID=${rid}&__proto__=1`,
  (rid) => `$dps/registrations/res/0200/?$rid=${rid}`,
  (rid) => `$dps/registrations/res/200?$rid=${rid}`,
  (rid) => `$dps/registrations/res/200/?$rid=${rid}&$rid=${rid}`,
  () => '$dps/registrations/res/',
  () => '$dps/registrations/res/200/?$rid=%',
]

export const HTTP_HEADS: readonly ((length: number) => string)[] = [
  (n) => `HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ${n}\r\n\r\n`,
  (n) =>
    `HTTP/1.1 202 Accepted\r\nRetry-After: 0\r\nLocation: https://evil.example/\r\nContent-Length: ${n}\r\n\r\n`,
  () => 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n',
  (n) => `HTTP/1.1 200 OK\r\nContent-Length: ${n}\r\nContent-Length: ${n + 1}\r\n\r\n`,
  (n) => `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: ${n}\r\n\r\n`,
  () => 'HTTP/1.1 307 Temporary Redirect\r\nLocation: https://evil.example/\r\nContent-Length: 0\r\n\r\n',
  () => 'HTTP/1.1 100 Continue\r\n\r\n'.repeat(40),
  () => 'HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n',
  (n) => `HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: ${n}\r\n\r\n`,
  () => `HTTP/1.1 200 OK\r\nX: ${'y'.repeat(40_000)}\r\n\r\n`,
  () => 'HTTP/2.0 200\r\n\r\n',
  () => 'HTTP/1.1 999999999999999999999 \0\r\n\r\n',
]
