import { printable } from './printable.ts'

/** A subject or issuer as Node gives it (one attribute a line), on one line and safe to print. */
export function printableName(name: string | undefined): string {
  return name === undefined || name === '' ? '(no name)' : printable(name.trim().replaceAll('\n', ', '))
}

/** The common name of a subject, or the whole subject where it has none; safe to print. */
export function commonName(subject: string | undefined): string {
  const cn = /^CN=(.+)$/m.exec(subject ?? '')?.[1]
  return cn === undefined ? printableName(subject) : printable(cn)
}
