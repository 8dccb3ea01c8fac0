import type { Duplex } from 'node:stream'
import { DpsError } from '../errors.ts'
import type { ConnectFunction, ConnectTarget } from '../options/options.ts'
import { isSystemCode } from './explain.ts'

/**
 * Asks the caller's `connect` for the way to `target`.
 *
 * @throws DpsError TRANSPORT_FAILED, phase `tcp`, for anything it throws that is no DpsError, and for anything it
 *   returns that cannot carry bytes in both directions
 */
export async function openWay(connect: ConnectFunction, target: ConnectTarget): Promise<Duplex> {
  let way: unknown
  try {
    way = await connect(target)
  } catch (cause) {
    if (DpsError.is(cause)) throw cause
    throw new DpsError('TRANSPORT_FAILED', 'tcp', 'the function `connect` failed', {
      cause,
      // What it met is the network, which may be another tomorrow.
      retryable: isSystemCode(cause),
      hint: 'See `cause` for what your `connect` function threw; it is called again only for an error with a system code such as ECONNREFUSED, or a retryable DpsError.',
    })
  }
  const wrong = whyUnusable(way)
  if (wrong === undefined) return way as Duplex
  destroyWay(way)
  throw new DpsError('TRANSPORT_FAILED', 'tcp', `the function \`connect\` returned ${wrong}`, {
    hint: 'Return a Duplex stream of bytes that is open in both directions and that nothing else reads.',
  })
}

/** For a way that came too late, or cannot be used. An error while it closes concerns nobody. */
export function destroyWay(way: unknown): void {
  const stream = way as Partial<Duplex> | null | undefined
  if (typeof stream?.destroy !== 'function') return
  if (typeof stream.on === 'function') stream.on('error', () => {})
  stream.destroy()
}

function whyUnusable(way: unknown): string | undefined {
  const stream = way as Duplex | null | undefined
  const methods = [
    'on',
    'once',
    'off',
    'write',
    'end',
    'destroy',
    'pause',
    'resume',
    'cork',
    'uncork',
  ] as const
  if (methods.some((method) => typeof stream?.[method] !== 'function')) return 'no Duplex stream'
  const { readableObjectMode, readableEncoding } = stream!
  if (readableObjectMode || readableEncoding) return 'a stream of objects or text, and not of bytes'
  return undefined
}
