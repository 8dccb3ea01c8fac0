import { describe, expect, it } from 'vitest'
import { version } from '../../../package.json'
import type { Credential } from '../../../src/credential/credential.ts'
import type { ProvisioningClientOptions } from '../../../src/options/options.ts'
import { resolveOptions } from '../../../src/options/resolve.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'

const credential: Credential = { load: () => Promise.reject(new Error('not asked here')) }
const minimal: ProvisioningClientOptions = { idScope: '0ne00000000', credential }

describe('resolveOptions', () => {
  it('fills in the documented defaults', () => {
    expect(resolveOptions(minimal)).toMatchObject({
      idScope: '0ne00000000',
      host: 'global.azure-devices-provisioning.net',
      connectTo: undefined,
      transports: ['mqtt'],
      apiVersion: '2019-03-31',
      issuanceApiVersion: '2025-07-01-preview',
      userAgent: `dps-device-client/${version}`,
      totalMs: 120_000,
      limits: {
        dns: 10_000,
        tcp: 15_000,
        tls: 30_000,
        connect: 15_000,
        subscribe: 15_000,
        register: 30_000,
        poll: 30_000,
      },
      retry: {
        maxAttempts: 8,
        maxThrottled: 8,
        baseDelayMs: 1000,
        maxDelayMs: 60_000,
        startDelayMs: 0,
        pollIntervalMs: 2000,
      },
    })
  })

  it('pipelines only where that is asked for', () => {
    expect(resolveOptions(minimal).pipelining).toBe(false)
    expect(resolveOptions({ ...minimal, mqtt: {} }).pipelining).toBe(false)
    expect(resolveOptions({ ...minimal, mqtt: { pipelining: true } }).pipelining).toBe(true)
  })

  it('takes one port for all transports, or one for each', () => {
    expect(resolveOptions(minimal).portFor('mqtt')).toBeUndefined()
    expect(resolveOptions({ ...minimal, port: 4433 }).portFor('https')).toBe(4433)
    const { portFor } = resolveOptions({
      ...minimal,
      port: { mqtt: 18_883, https: 4433, 'mqtt-ws': undefined } as never,
    })
    expect([portFor('mqtt'), portFor('https'), portFor('mqtt-ws'), portFor('__proto__')]).toEqual([
      18_883,
      4433,
      undefined,
      undefined,
    ])
  })

  it('takes an order of transports, and the remembered contact as a date or a number', () => {
    const own = { name: 'own', open: () => Promise.reject(new Error('not asked here')) }
    const transport = ['mqtt', own, 'https'] as const
    const resolved = resolveOptions({ ...minimal, transport, lastContact: new Date(7) })
    expect(resolved).toMatchObject({ transports: transport, lastContactMs: 7 })
    expect(Object.isFrozen(resolved.transports)).toBe(true)
  })

  it('copies what it is given and writes to none of it', () => {
    const timeouts = Object.freeze({ totalMs: 5000 })
    const options = Object.freeze({ ...minimal, timeouts, host: 'Contoso.Azure-Devices-Provisioning.NET' })
    const resolved = resolveOptions(options)
    expect(resolved).toMatchObject({ totalMs: 5000, host: 'contoso.azure-devices-provisioning.net' })
    expect(
      Object.isFrozen(resolved) && Object.isFrozen(resolved.retry) && Object.isFrozen(resolved.limits),
    ).toBe(true)
  })

  it.each([
    ['0ne00000000', undefined, 0],
    ['0ne00000000', 'contoso.azure-devices-provisioning.us', 0],
    ['0cn00000000', 'global.azure-devices-provisioning.cn', 0],
    ['0cn00000000', undefined, 1],
    ['0ne00000000', 'global.azure-devices-provisioning.cn', 1],
    ['0cn00000000', 'emulator.local', 0],
  ])('warns when the id scope %s is sent to another cloud (%s)', (idScope, host, count) => {
    const options = host === undefined ? { ...minimal, idScope } : { ...minimal, idScope, host }
    expect(resolveOptions(options).warnings).toHaveLength(count)
  })

  it('treats undefined as absent', () => {
    expect(resolveOptions({ ...minimal, timeouts: { tlsMs: undefined } as never }).limits.tls).toBe(30_000)
  })

  it.each<[string, unknown, string]>([
    ['no options', undefined, 'options'],
    ['an unknown option', { ...minimal, rejectUnauthorized: false }, 'rejectUnauthorized'],
    ['an unknown time-out', { ...minimal, timeouts: { total: 1 } }, 'timeouts.total'],
    ['an unknown retry option', { ...minimal, retry: { attempts: 1 } }, 'retry.attempts'],
    ['no id scope', { credential }, 'idScope'],
    ['an id scope with a slash', { ...minimal, idScope: '0ne/registrations' }, 'idScope'],
    ['no credential', { idScope: '0ne00000000' }, 'credential'],
    ['a key in place of a credential', { ...minimal, credential: 'c2VjcmV0' }, 'credential'],
    ['a URL as host', { ...minimal, host: 'https://global.azure-devices-provisioning.net' }, 'host'],
    ['a host with a port', { ...minimal, host: 'localhost:8883' }, 'host'],
    ['an empty host', { ...minimal, host: '' }, 'host'],
    ['port 0', { ...minimal, port: 0 }, 'port'],
    ['port 65536', { ...minimal, port: 65_536 }, 'port'],
    ['connectTo with a port', { ...minimal, connectTo: '10.0.0.4:8883' }, 'connectTo'],
    ['an unknown transport', { ...minimal, transport: 'amqp' }, 'transport'],
    ['no transport at all', { ...minimal, transport: [] }, 'transport'],
    ['a transport twice', { ...minimal, transport: ['mqtt', 'https', 'mqtt'] }, 'transport'],
    ['an unknown transport in a list', { ...minimal, transport: ['mqtt', 'amqp'] }, 'transport'],
    ['an unknown option of MQTT', { ...minimal, mqtt: { keepAlive: 1 } }, 'mqtt.keepAlive'],
    ['options of MQTT that are none', { ...minimal, mqtt: true }, 'mqtt'],
    ['pipelining in words', { ...minimal, mqtt: { pipelining: 'yes' } }, 'mqtt.pipelining'],
    ['a port for an unknown transport', { ...minimal, port: { amqp: 5671 } }, 'port.amqp'],
    ['port 0 for one transport', { ...minimal, port: { https: 0 } }, 'port.https'],
    ['a contact that is no time', { ...minimal, lastContact: 'yesterday' }, 'lastContact'],
    ['a contact at an invalid date', { ...minimal, lastContact: new Date('x') }, 'lastContact'],
    [
      'an unknown way to wait for the clock',
      { ...minimal, waitForClock: { until: 'ntp' } },
      'waitForClock.until',
    ],
    [
      'an endless wait for the clock',
      { ...minimal, waitForClock: { limitMs: Infinity } },
      'waitForClock.limitMs',
    ],
    ['an unknown option of the wait', { ...minimal, waitForClock: { limit: 1 } }, 'waitForClock.limit'],
    [
      'an API version that would change the user name',
      { ...minimal, apiVersion: '2019-03-31&x=1' },
      'apiVersion must be a date such',
    ],
    [
      'a user agent with a line break',
      { ...minimal, userAgent: 'a\r\nb' },
      'userAgent must be 1 to 128 printable',
    ],
    ['no clock', { ...minimal, clock: null }, 'clock'],
    ['a clock without sleep', { ...minimal, clock: { now: () => 0 } }, 'clock'],
    ['a handler that is no function', { ...minimal, onEvent: {} }, 'onEvent'],
    ['a time-out of 0', { ...minimal, timeouts: { tlsMs: 0 } }, 'timeouts.tlsMs'],
    [
      'a time-out that a timer cannot hold',
      { ...minimal, timeouts: { totalMs: 2 ** 31 } },
      'timeouts.totalMs',
    ],
    ['a time-out in words', { ...minimal, timeouts: { tlsMs: '30s' } }, 'timeouts.tlsMs'],
    ['NaN attempts', { ...minimal, retry: { maxAttempts: Number.NaN } }, 'retry.maxAttempts'],
    ['no answer from a busy service', { ...minimal, retry: { maxThrottled: 0 } }, 'retry.maxThrottled'],
    ['no attempt at all', { ...minimal, retry: { maxAttempts: 0 } }, 'retry.maxAttempts'],
    ['trust as a string', { ...minimal, trust: 'system' }, 'trust'],
  ])('refuses %s', async (_, options, name) => {
    const error = await expectDpsError(() => resolveOptions(options as never), 'OPTION_INVALID', 'config')
    expect(error.message.startsWith(`${name} `)).toBe(true)
  })

  it('never repeats a credential in a message', async () => {
    const error = await expectDpsError(
      () => resolveOptions({ ...minimal, credential: 'c2VjcmV0c2VjcmV0' as never }),
      'OPTION_INVALID',
      'config',
    )
    expect(JSON.stringify(error)).not.toContain('c2VjcmV0')
  })
})
