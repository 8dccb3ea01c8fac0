/** A page whole, with its style and its script, as the build puts them into one text. */
declare module '*.html' {
  const html: string
  export default html
}
