const REDACTED = '[redacted]'

/**
 * Holds a key or passphrase so that no log line can: every way of printing it, or an object that contains it, shows
 * `[redacted]`, and a structured clone of it is empty. `reveal` is the only way to the value.
 */
export class Secret<T> {
  readonly #value: T

  constructor(value: T) {
    this.#value = value
    Object.freeze(this)
  }

  reveal(): T {
    return this.#value
  }

  toString(): string {
    return REDACTED
  }

  toJSON(): string {
    return REDACTED
  }

  [Symbol.toPrimitive](): string {
    return REDACTED
  }

  /** What `util.inspect` and `console.log` print. */
  [Symbol.for('nodejs.util.inspect.custom')](): string {
    return REDACTED
  }
}

/** Properties that print as `[redacted]` in an object made by `redacting`. */
export type RedactedName<T> = Extract<keyof T, string>

/**
 * A frozen object with the properties of `values`, of which those in `hidden` are not printed by `JSON.stringify`,
 * `util.inspect` or `console.log`. For option objects that an API must be able to read: whatever reads the properties
 * themselves (spread, structured clone, `console.table`) has the values.
 */
export function redacting<T extends object>(values: T, hidden: readonly RedactedName<T>[]): Readonly<T> {
  const shown = {
    ...values,
    ...Object.fromEntries(hidden.filter((n) => n in values).map((n) => [n, REDACTED])),
  }
  const result = {}
  for (const [name, value] of Object.entries(values)) {
    // Getters, because `util.inspect` does not call them even where it is told to ignore custom printers.
    Object.defineProperty(result, name, { enumerable: true, get: () => value })
  }
  for (const printer of ['toJSON', Symbol.for('nodejs.util.inspect.custom')]) {
    Object.defineProperty(result, printer, { enumerable: false, value: () => shown })
  }
  return Object.freeze(result) as Readonly<T>
}
