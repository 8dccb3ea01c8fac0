import { readFile } from 'node:fs/promises'
import { brotliCompressSync, constants } from 'node:zlib'
import { transform } from 'esbuild'

/**
 * A page in one text, its style and its script put into its HTML, compressed (Brotli) and in base64: a third of its size in a
 * package that has little room.
 */
export async function pageText(path) {
  const small = async (loader, options = {}) => {
    const source = await readFile(path.replace(/html$/, loader), 'utf8')
    return (await transform(source, { loader, minify: true, ...options })).code.trimEnd()
  }
  const style = await small('css')
  const script = await small('js', { format: 'iife' })
  const html = (await readFile(path, 'utf8'))
    .replace(/>\s+</g, '><')
    .replace('<style>', () => `<style>${style}`)
    .replace('<script>', () => `<script>${script}`)
    .trim()
  const params = { [constants.BROTLI_PARAM_MODE]: constants.BROTLI_MODE_TEXT }
  return brotliCompressSync(html, { params }).toString('base64')
}
