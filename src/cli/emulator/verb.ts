import { FORCE } from '../derive-key.ts'
import { optionsOf, type Verb } from '../verb.ts'
import { emulate } from './emulate.ts'

export const emulator = (): Verb => ({
  about: 'runs an emulated service and its hub on this machine, to try devices against',
  help: `Runs an emulated Device Provisioning Service and the hub behind it, on this machine alone, until Ctrl-C. It prints what
it is asked, and commands that register a device with it. Keys and roots are of this run only.

  dps-device emulator
  dps-device emulator --page 8080 --fault register=429 --fault 'poll=silence*2@press-42'
  dps-device emulator --config emulator.json --dir emulated --json

The file may hold what is to be enrolled (nothing else is then), in "enrollments", beside the options:
  { "enrollments": {
      "devices": [{ "registrationId": "press-1" }, { "registrationId": "press-2", "attestation": "x509" }],
      "groups": [{ "groupId": "presses", "symmetricKeyFile": "group.key", "devices": ["press-3"] },
                 { "groupId": "line-2", "attestation": "x509", "certificateFile": "ca.pem" }] } }
Keys and certificates that are not given are made. Each may also have hub, payload, reprovisioning (migrate, reset or
never), enabled, issuance ({} for 30 days), a device deviceId, and a group the devices to make ready.

A fault is STEP=ACTION[+ACTION…][*TIMES][@REGISTRATION-ID]; TIMES is a number or forever, and 1 if left out. STATUS is that
of HTTP; NUMBER counts bytes, milliseconds (late) or is a code (refuse). Actions of every step but issue: silence, drop,
no-close-notify and reset of the connection. Steps in the order of the flow, and their further actions:
  accept, client-hello, handshake, telemetry, twin, ping: no others
  upgrade: STATUS refuse:NUMBER
  connect, hub-connect: refuse:NUMBER
  subscribe, hub-subscribe: refuse
  register, poll: STATUS failed disabled unassigned no-puback reply-before-puback
  register-reply, poll-reply: STATUS failed disabled unassigned wrong-rid duplicate no-operation-id no-hub no-device-id
    byte-by-byte truncate:NUMBER cut:NUMBER oversize:NUMBER
  lookup: STATUS
  lookup-reply: STATUS no-hub no-device-id byte-by-byte truncate:NUMBER cut:NUMBER oversize:NUMBER
  issue: wrong-key wrong-name broken-chain expired not-yet-valid no-chain leaf-only reversed pem duplicate with-unrelated
    garbage
  telemetry-ack: no-puback
  twin-reply: STATUS wrong-rid duplicate
  renew: STATUS ignore
  renew-accepted: STATUS wrong-rid duplicate truncate:NUMBER oversize:NUMBER
  renew-reply: STATUS wrong-rid duplicate truncate:NUMBER oversize:NUMBER bare-array late:NUMBER`,
  options: optionsOf(
    ['id-scope'],
    [
      {
        name: 'port',
        kind: 'number',
        value: 'PORT',
        help: 'to listen on, for MQTT, WebSocket and HTTPS alike; default a free one',
      },
      {
        name: 'fault',
        kind: 'list',
        value: 'FAULT',
        separator: ',',
        help: 'a fault from the start on; several by comma or repeated',
      },
      {
        name: 'enrollments',
        kind: 'json',
        value: 'JSON',
        help: 'what is enrolled, as above; @FILE reads it from there',
      },
      {
        name: 'hub',
        kind: 'list',
        value: 'NAME',
        separator: ',',
        help: 'a linked hub; several by comma or repeated; default emulated-hub.azure-devices.net',
      },
      {
        name: 'polls',
        kind: 'number',
        value: 'COUNT',
        help: 'how often a device is told that it is being assigned; default 1',
      },
      {
        name: 'retry-after',
        kind: 'number',
        value: 'SECONDS',
        help: 'what a device is told to wait; default 3',
      },
      { name: 'issue', kind: 'flag', help: 'issues a certificate to every device that asks (preview)' },
      {
        name: 'dir',
        kind: 'text',
        value: 'FOLDER',
        help: 'where root and keys are written, and left; default one that is removed',
      },
      { ...FORCE, help: 'replaces the files in --dir' },
      {
        name: 'page',
        kind: 'number',
        value: 'PORT',
        help: 'serves a live page to this machine; 0 takes a free port',
      },
    ],
  ),
  run: emulate,
})
