/**
 * When this version was made. No clock that works is earlier: the client refuses one that is, before any packet.
 * Set by hand with every release, so that a build is reproducible.
 */
export const RELEASED_AT_MS = Date.UTC(2026, 10, 24)
