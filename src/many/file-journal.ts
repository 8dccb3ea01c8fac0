import { constants } from 'node:fs'
import { type FileHandle, open, readdir, realpath, unlink } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { DpsError } from '../errors.ts'
import type { FileTools, OpenJournal } from '../provision-many.ts'

/** Far above any record; a path that leads to a disk image is found before that fills the memory. */
const MAX_LINE_BYTES = 1024 * 1024
const CHUNK_BYTES = 64 * 1024
const LINE_FEED = 0x0a

/** Journals that are open in this process. */
const held = new Set<string>()

/** Two names of one file are one journal. */
const placeOf = (path: string): Promise<string> =>
  realpath(path).catch(async () =>
    join(await realpath(dirname(path)).catch(() => dirname(path)), basename(path)),
  )

/** One record a line; a file that ends within a line is gone on with on the next. */
export async function openJournalFile(
  path: string,
  onRecord: (record: Uint8Array, position: number) => void,
  tools: FileTools,
): Promise<OpenJournal> {
  const { codeOf, failed, flush, replace } = tools
  const file = await placeOf(path)
  const run = async <R>(verb: string, work: () => Promise<R>): Promise<R> => {
    try {
      return await work()
    } catch (cause) {
      if (DpsError.is(cause)) throw cause
      throw failed(`${file} could not be ${verb} (${codeOf(cause) ?? 'unknown error'})`, cause)
    }
  }
  const notices: string[] = []
  let handle: FileHandle | undefined
  let endsOpen = false
  const unlock = await run('locked', () => lock(file, tools))

  const openExisting = async (): Promise<FileHandle | undefined> => {
    try {
      // Without waiting for the reader of a FIFO.
      return await open(file, constants.O_RDWR | constants.O_APPEND | (constants.O_NONBLOCK ?? 0))
    } catch (error) {
      if (codeOf(error) === 'ENOENT') return undefined
      throw error
    }
  }
  const begin = async () => {
    handle = await openExisting()
    if (handle === undefined) return
    if (!(await handle.stat()).isFile()) throw failed(`${file} is not a regular file`)
    let carried = Buffer.alloc(0)
    // Where `carried` begins.
    let position = 0
    const chunk = Buffer.alloc(CHUNK_BYTES)
    const record = (line: Buffer) => line.length > 0 && onRecord(line, position)
    for (let from = 0; ; ) {
      const { bytesRead } = await handle.read(chunk, 0, chunk.length, from)
      if (bytesRead === 0) break
      from += bytesRead
      let bytes = Buffer.concat([carried, chunk.subarray(0, bytesRead)])
      for (let end = bytes.indexOf(LINE_FEED); end !== -1; end = bytes.indexOf(LINE_FEED)) {
        record(bytes.subarray(0, end))
        position += end + 1
        bytes = bytes.subarray(end + 1)
      }
      if (bytes.length > MAX_LINE_BYTES)
        throw failed(`${file} has a line of more than 1 MiB, so it is no journal`)
      carried = bytes
    }
    record(carried)
    endsOpen = carried.length > 0
    if (position === 0 && !endsOpen) {
      // Nothing is in it, and what comes first has to come whole.
      await handle.close()
      handle = undefined
    }
  }
  const close = async () => {
    await handle?.close()
    await unlock()
  }
  try {
    await run('read', begin)
  } catch (error) {
    await close()
    throw error
  }
  return {
    notices,
    at: (position) =>
      run('read', async () => {
        const parts: Buffer[] = []
        for (let from = position; from - position < MAX_LINE_BYTES; ) {
          const part = Buffer.alloc(4096)
          const bytesRead = (await handle?.read(part, 0, part.length, from))?.bytesRead ?? 0
          const end = part.subarray(0, bytesRead).indexOf(LINE_FEED)
          parts.push(part.subarray(0, end === -1 ? bytesRead : end))
          if (end !== -1 || bytesRead === 0) break
          from += bytesRead
        }
        return Buffer.concat(parts)
      }),
    append: (records) =>
      run('written', async () => {
        const text = Buffer.concat(records.flatMap((record) => [record, Buffer.of(LINE_FEED)]))
        if (handle === undefined) {
          await replace(file, text)
          if (!(await flush(dirname(file)))) {
            notices.push(
              `${dirname(file)} cannot be flushed on this platform: a new journal may not outlast a power cut`,
            )
          }
          handle = await openExisting()
          return
        }
        const before = endsOpen
        endsOpen = true
        await handle.appendFile(before ? Buffer.concat([Buffer.of(LINE_FEED), text]) : text)
        await handle.datasync()
        endsOpen = false
      }),
    close: () => run('closed', close),
  }
}

/**
 * Says who has the journal by the name of a file. Whoever finds a living one beside its own steps back, so two that come at
 * once may both fail and never both go on.
 */
async function lock(file: string, { codeOf, failed, isAlive }: FileTools): Promise<() => Promise<void>> {
  const inUse = (pid: number) =>
    failed(`${file} is in use by process ${pid}: a journal is of one run at a time`)
  const [folder, prefix] = [dirname(file), `${basename(file)}.`]
  const own = `${file}.${process.pid}.lock`
  if (held.has(own)) throw inUse(process.pid)
  held.add(own)
  const unlock = async () => {
    held.delete(own)
    await unlink(own).catch(() => {})
  }
  try {
    // In a container every process has had the same id: one of ours that is there is nobody's.
    await open(own, 'wx', 0o600).then(
      (made) => made.close(),
      (error) => {
        if (codeOf(error) !== 'EEXIST') throw error
      },
    )
    for (const entry of await readdir(folder)) {
      const pid = Number(
        entry.startsWith(prefix) && /^(\d{1,10})\.lock$/.exec(entry.slice(prefix.length))?.[1],
      )
      if (!(pid > 0) || pid === process.pid) continue
      if (isAlive(pid)) throw inUse(pid)
      await unlink(join(folder, entry)).catch((error) => {
        if (codeOf(error) !== 'ENOENT') throw error
      })
    }
  } catch (error) {
    await unlock()
    throw error
  }
  return unlock
}
