import { readFile } from 'node:fs/promises'
import { transform } from 'esbuild'

/** A page in one text: its style and its script, each made small, put into its HTML. */
export async function pageText(path) {
  const small = async (loader, options = {}) => {
    const source = await readFile(path.replace(/html$/, loader), 'utf8')
    return (await transform(source, { loader, minify: true, ...options })).code.trimEnd()
  }
  const style = await small('css')
  const script = await small('js', { format: 'iife' })
  return (await readFile(path, 'utf8'))
    .replace(/>\s+</g, '><')
    .replace('<style>', () => `<style>${style}`)
    .replace('<script>', () => `<script>${script}`)
    .trim()
}
