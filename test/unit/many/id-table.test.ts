import { describe, expect, it } from 'vitest'
import { IdTable } from '../../../src/many/id-table.ts'

describe('the table of ids', () => {
  it('keeps a number for each of many, and grows with them', () => {
    const table = new IdTable()
    for (let i = 0; i < 20_000; i++) table.set(`device-${i}`, i - 10_000)
    expect(table.size).toBe(20_000)
    for (let i = 0; i < 20_000; i++) expect(table.get(`device-${i}`)).toBe(i - 10_000)
    expect(table.get('device-20000')).toBeUndefined()
  })

  it('takes two spellings for one id, as the service does, and the last number counts', () => {
    const table = new IdTable()
    table.set('Press-1', 1)
    table.set('press-1', 2 ** 52 + 7)
    expect(table.size).toBe(1)
    expect(table.get('PRESS-1')).toBe(2 ** 52 + 7)
  })
})
