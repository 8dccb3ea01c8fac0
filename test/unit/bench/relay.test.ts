import { connect, createServer, type Socket } from 'node:net'
import { expect, it } from 'vitest'
import { countingRelay } from '../../../bench/lib/relay.mjs'

it('a relay counts bytes each way, answers after a question, and the first record', async () => {
  const server = createServer((socket) => {
    socket.on('data', (chunk) => socket.write(Buffer.alloc(2 * chunk.length)))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const relay = await countingRelay({ port: (server.address() as { port: number }).port })
  const open = () =>
    new Promise<Socket>((resolve) => {
      const socket = connect(relay.port, '127.0.0.1', () => resolve(socket))
    })
  const ask = (socket: Socket, question: Buffer) =>
    new Promise<void>((resolve) => {
      let missing = 2 * question.length
      const read = (chunk: Buffer) => {
        missing -= chunk.length
        if (missing > 0) return
        socket.off('data', read)
        resolve()
      }
      socket.on('data', read)
      socket.write(question)
    })
  try {
    const socket = await open()
    // The head of a handshake record of 7 bytes.
    await ask(socket, Buffer.from([22, 3, 1, 0, 7, 1, 0, 0, 3, 0, 0, 0]))
    await ask(socket, Buffer.alloc(100))
    expect(relay.counts).toEqual({ connections: 1, up: 112, down: 224, turns: 2, clientHello: 12 })
    socket.destroy()

    relay.reset()
    const another = await open()
    await ask(another, Buffer.from('GET'))
    expect(relay.counts).toEqual({ connections: 1, up: 3, down: 6, turns: 1, clientHello: 0 })
    another.destroy()
  } finally {
    await relay.close()
    server.close()
  }
})
