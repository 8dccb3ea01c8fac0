// The published types cover the whole library only; this entry loads its ASN.1 part alone.
declare module 'node-forge/lib/asn1.js' {
  import type { asn1 } from 'node-forge'

  const codec: typeof asn1
  export default codec
}
