// Lines over time as SVG, readable on a light and on a dark page.

import { formatNumber } from '../lib/report.mjs'

/**
 * @typedef {{ name: string, style: string, points: readonly (readonly [number, number])[] }} Line
 * @typedef {{ title: string, lines: readonly Line[], log?: boolean, top: number }} Panel `top` is the largest value shown;
 *   with `log` the scale is one of powers of ten from 1
 */

const WIDTH = 760
const LEFT = 64
const RIGHT = 16
const HEIGHT = 190
const STYLE = `
    text { font: 12px system-ui, sans-serif; fill: #1f2328 }
    .title { font-weight: 600; font-size: 14px }
    .grid { stroke: #d1d9e0; stroke-width: 1 }
    path { fill: none; stroke-width: 2; stroke-linejoin: round }
    .bound { stroke: #1f2328; stroke-width: 1.5; stroke-dasharray: 2 3 }
    .microsoft { stroke: #818b98 }
    .microsoft-spread { stroke: #818b98; stroke-dasharray: 7 4 }
    .defaults { stroke: #bc4c00 }
    .start-delay { stroke: #0969da; stroke-width: 2.5 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .grid { stroke: #3d444d }
      .bound { stroke: #e6edf3 }
      .microsoft, .microsoft-spread { stroke: #9198a1 }
      .defaults { stroke: #f0883e }
      .start-delay { stroke: #4493f8 }
    }`

const escapeXml = (text) =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;')

/** 1, 2 or 5 times a power of ten, so that there are four to eight of them. */
function stepOf(range) {
  const power = 10 ** Math.floor(Math.log10(range / 4))
  return [1, 2, 5].map((factor) => factor * power).findLast((step) => range / step >= 4) ?? power
}

/**
 * @param {{ title: string, words: string, minutes: number, panels: readonly Panel[] }} chart `words` says what it shows to
 *   who cannot see it
 */
export function svgLines({ title, words, minutes, panels }) {
  const out = [`<text class="title" x="8" y="22">${escapeXml(title)}</text>`]
  const x = (minute) => LEFT + (Math.min(minute, minutes) / minutes) * (WIDTH - LEFT - RIGHT)
  let y = 44
  let left = 8
  for (const { name, style } of panels[0].lines) {
    const length = 34 + name.length * 6.6
    if (left + length > WIDTH - 8) {
      left = 8
      y += 20
    }
    out.push(
      `<path class="${style}" d="M${left} ${y - 4}h24"/>`,
      `<text x="${left + 30}" y="${y}">${escapeXml(name)}</text>`,
    )
    left += length + 12
  }
  y += 30
  for (const { title: what, lines, log = false, top } of panels) {
    const decades = Math.max(1, Math.ceil(Math.log10(top)))
    const share = (value) => (log ? Math.log10(Math.max(value, 1)) / decades : value / top)
    const bottom = y + HEIGHT
    const height = (value) => bottom - Math.min(1, Math.max(0, share(value))) * (HEIGHT - 20)
    out.push(`<text x="8" y="${y + 4}">${escapeXml(what)}</text>`)
    const short = (mark) => (mark < 1e3 ? mark : mark < 1e6 ? `${mark / 1e3}k` : `${mark / 1e6}M`)
    const marks = log
      ? Array.from({ length: decades + 1 }, (_, power) => 10 ** power)
      : [0, 0.25, 0.5, 0.75, 1].map((part) => part * top)
    for (const mark of marks) {
      const at = height(mark).toFixed(1)
      const text = log ? (mark === 1 ? '≤ 1' : short(mark)) : `${Math.round(mark * 100)} %`
      out.push(
        `<line class="grid" x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${at}" y2="${at}"/>`,
        `<text x="${LEFT - 6}" y="${Number(at) + 4}" text-anchor="end">${text}</text>`,
      )
    }
    for (let mark = 0; mark <= minutes; mark += stepOf(minutes)) {
      out.push(
        `<text x="${x(mark).toFixed(1)}" y="${bottom + 18}" text-anchor="middle">${formatNumber(mark)}</text>`,
      )
    }
    for (const { style, points } of lines) {
      const seen = points.filter(([minute]) => minute <= minutes)
      const path = seen.map(([minute, value]) => `${x(minute).toFixed(1)} ${height(value).toFixed(1)}`)
      if (path.length > 1) out.push(`<path class="${style}" d="M${path.join('L')}"/>`)
    }
    y = bottom + 48
  }
  out.push(
    `<text x="${WIDTH - RIGHT}" y="${y - 12}" text-anchor="end">minutes since the power came back</text>`,
  )
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${y}" width="${WIDTH}" height="${y}" role="img" aria-labelledby="title words">
  <title id="title">${escapeXml(title)}</title>
  <desc id="words">${escapeXml(words)}</desc>
  <style>${STYLE}
  </style>
  ${out.join('\n  ')}
</svg>
`
}
