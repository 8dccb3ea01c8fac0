import { bindingOf, type StoredRecord } from '../../../src/assignment/record.ts'
import type { AssignmentStore } from '../../../src/assignment/store.ts'
import type { Identity } from '../../../src/credential/credential.ts'
import { DEFAULT_HOST } from '../../../src/options/resolve.ts'
import { RELEASED_AT_MS } from '../../../src/release.ts'

export const identityOf = (fingerprint = 'ab'.repeat(32)): Identity => ({
  registrationId: 'd',
  fingerprint,
  checkDates: () => {},
  token: async () => undefined,
})

/** An assignment with something in every field. */
export const record = (): StoredRecord => ({
  binding: bindingOf('0ne00000000', DEFAULT_HOST, identityOf()),
  contactMs: RELEASED_AT_MS + 86_400_000,
  registration: {
    registrationId: 'd',
    deviceId: 'Device-1',
    assignedHub: 'Old-Hub.azure-devices.net',
    status: 'assigned',
    substatus: 'initialAssignment',
    payload: { ring: 3, words: ['größer', '🔑'], nested: { none: null } },
    etag: '"5f00"',
    createdAt: new Date(RELEASED_AT_MS),
    lastUpdatedAt: new Date(RELEASED_AT_MS + 1),
    connectionProfile: 'classic',
  },
})

export interface MemoryStore extends AssignmentStore {
  bytes: Uint8Array | undefined
  /** Calls, in order. */
  readonly calls: string[]
}

export function memoryStore(bytes?: Uint8Array): MemoryStore {
  const calls: string[] = []
  return {
    bytes,
    calls,
    async read() {
      calls.push('read')
      return this.bytes
    },
    async write(next) {
      calls.push('write')
      this.bytes = next
    },
    async remove() {
      calls.push('remove')
      this.bytes = undefined
    },
  }
}
