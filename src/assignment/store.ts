/**
 * Keeps one small record over restarts and power cuts: bytes, which `provision`, or `issuedCertificate`, writes, checks and interprets. Three verbs,
 * one rule each:
 *
 * - `read` resolves with what was written last, whole, or undefined where nothing is.
 * - `write` replaces it at one stroke: whoever reads at any time, after a crash too, finds the old bytes or the new ones.
 *   It resolves when they will outlast a power cut.
 * - `remove` leaves nothing; it also has to work where `write` fails because no space is left.
 *
 * A rejection loses nothing else: a record that cannot be read counts as none, and one that cannot be written is told by an
 * event. The checksum in the bytes finds damage, not forgery, so nobody else may be able to write them. Those of an assignment hold
 * no key; those of `issuedCertificate` do, and nobody else may be able to read them.
 */
export interface AssignmentStore {
  read(): Promise<Uint8Array | undefined>
  write(record: Uint8Array): Promise<void>
  remove(): Promise<void>
  /** What this platform could not do so far, one sentence each; they become `warning` events. */
  readonly notices?: readonly string[]
}
