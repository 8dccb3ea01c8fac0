// `node relay.mjs host port`: what is written to it goes there, what comes from there is what it prints.

import { connect } from 'node:net'
import { pipeline } from 'node:stream/promises'

const [host, port] = process.argv.slice(2)
const socket = connect({ host: host ?? '', port: Number(port) })
await Promise.allSettled([pipeline(process.stdin, socket), pipeline(socket, process.stdout)])
