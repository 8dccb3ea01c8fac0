import { createECDH } from 'node:crypto'
import { base64Of } from './pem.ts'

const CURVE = '06082a8648ce3d030107'

/**
 * By label, what stands before the scalar and after it: PKCS#8 (RFC 5958) and SEC1 (RFC 5915), as every program writes them.
 * OpenSSL reads neither under the label of the other for certain.
 */
const FORMS = [
  ['PRIVATE KEY', `308187020100301306072a8648ce3d0201${CURVE}046d306b0201010420`, 'a144034200'],
  ['EC PRIVATE KEY', '30770201010420', `a00a${CURVE}a144034200`],
].map(([label, before, after]) => ({
  begin: `-----BEGIN ${label}-----`,
  before: Buffer.from(before!, 'hex'),
  after: Buffer.from(after!, 'hex'),
}))

const SCALAR_BYTES = 32

/**
 * The public point of a private key on P-256, calculated from its scalar; undefined for any other key, and for one that is
 * written in another way or with another point beside it, of all of which OpenSSL is the judge.
 *
 * @param pem one clean block
 */
export function p256PointOf(pem: string): Buffer | undefined {
  const form = FORMS.find(({ begin }) => pem.startsWith(begin))
  if (form === undefined) return undefined
  const { before, after } = form
  const der = Buffer.from(base64Of(pem), 'base64')
  const [from, to] = [before.length, before.length + SCALAR_BYTES]
  const rest = der.subarray(to)
  if (!der.subarray(0, from).equals(before) || !rest.subarray(0, after.length).equals(after)) return undefined
  try {
    const ecdh = createECDH('prime256v1')
    ecdh.setPrivateKey(der.subarray(from, to))
    const point = ecdh.getPublicKey()
    return point.equals(rest.subarray(after.length)) ? point : undefined
  } catch {
    // The scalar is 0 or too large.
    return undefined
  }
}
