// The published types cover the whole library only; this entry loads its ASN.1 part alone.
declare module 'node-forge/lib/asn1.js' {
  import type { asn1 } from 'node-forge'

  const codec: typeof asn1 & {
    /** Missing in the published types. */
    fromDer(bytes: string, options: { decodeBitStrings: boolean }): asn1.Asn1
  }
  export default codec
}
