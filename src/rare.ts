// What few programs need, in one file that is loaded for them alone; of it credentials see their own part.
export * from './credential/rare.ts'
export { openJournalFile } from './many/file-journal.ts'
export { openMany } from './many/many.ts'
