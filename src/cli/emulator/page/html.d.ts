/** A page whole, with its style and its script, as the build packs it: Brotli in base64. */
declare module '*.html' {
  const packed: string
  export default packed
}
