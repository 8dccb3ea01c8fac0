import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  commandFilter,
  decodePropertyBag,
  encodePropertyBag,
  METHOD_FILTER,
  methodResponseTopic,
  parseCommandTopic,
  parseDesiredTopic,
  parseMethodTopic,
  parseTwinResponse,
  TWIN_DESIRED_FILTER,
  TWIN_RESPONSE_FILTER,
  telemetryTopic,
  twinGetTopic,
  twinReportTopic,
} from '../../../src/protocol/hub-wire.ts'
import { expectDpsError } from '../../support/expect-dps-error.ts'

const device = { deviceId: 'my-device' }
const module = { deviceId: 'my-device', moduleId: 'my-module' }

describe('the topics', () => {
  it('are those of the documentation', () => {
    expect(telemetryTopic(device)).toBe('devices/my-device/messages/events/')
    expect(telemetryTopic(module)).toBe('devices/my-device/modules/my-module/messages/events/')
    expect(
      telemetryTopic(device, {
        contentType: 'application/json',
        contentEncoding: 'utf-8',
        properties: { a: '1' },
      }),
    ).toBe('devices/my-device/messages/events/$.ct=application%2Fjson&$.ce=utf-8&a=1')
    expect(commandFilter(device)).toBe('devices/my-device/messages/devicebound/#')
    expect(METHOD_FILTER).toBe('$iothub/methods/POST/#')
    expect(methodResponseTopic(200, '1')).toBe('$iothub/methods/res/200/?$rid=1')
    expect(TWIN_RESPONSE_FILTER).toBe('$iothub/twin/res/#')
    expect(TWIN_DESIRED_FILTER).toBe('$iothub/twin/PATCH/properties/desired/#')
    expect(twinGetTopic('7')).toBe('$iothub/twin/GET/?$rid=7')
    expect(twinReportTopic('8')).toBe('$iothub/twin/PATCH/properties/reported/?$rid=8')
  })

  it('of a command are read, and no other', () => {
    const read = (topic: string) => parseCommandTopic(device, topic)
    expect(
      read(
        'devices/my-device/messages/devicebound/%24.mid=m1&%24.to=%2Fdevices%2Fmy-device%2Fmessages%2Fdevicebound&%24.ct=text%2Fplain&iothub-ack=full&room=3%20east&flag&empty=',
      ),
    ).toEqual({
      messageId: 'm1',
      to: '/devices/my-device/messages/devicebound',
      contentType: 'text/plain',
      ack: 'full',
      properties: { room: '3 east', flag: '', empty: '' },
    })
    expect(read('devices/my-device/messages/devicebound/')).toEqual({ properties: {} })
    expect(read('devices/other/messages/devicebound/a=1')).toBeUndefined()
    expect(read('devices/my-device/messages/devicebound/a=%zz')).toBeUndefined()
    expect(read('devices/my-device/messages/devicebound/%ff=1')).toBeUndefined()
    expect(read('devices/my-device/messages/events/a=1')).toBeUndefined()
  })

  it.each([
    ['$iothub/methods/POST/reboot/?$rid=1', { name: 'reboot', requestId: '1' }],
    ['$iothub/methods/POST/re%20boot/?a=b&$rid=1f', { name: 're%20boot', requestId: '1f' }],
    ['$iothub/methods/POST//?$rid=1', undefined],
    ['$iothub/methods/POST/a/b/?$rid=1', undefined],
    ['$iothub/methods/POST/reboot/?$rid=', undefined],
    ['$iothub/methods/POST/reboot/?$rid=1&$rid=2', undefined],
    ['$iothub/methods/POST/reboot/?$rid=a/b', undefined],
    ['$iothub/methods/POST/reboot/?$rid=#', undefined],
    ['$iothub/methods/POST/reboot', undefined],
    ['x$iothub/methods/POST/reboot/?$rid=1', undefined],
  ])('of a method: %s', (topic, expected) => {
    expect(parseMethodTopic(topic)).toEqual(expected)
  })

  it.each([
    ['$iothub/twin/res/200/?$rid=1', { status: 200, requestId: '1' }],
    ['$iothub/twin/res/204/?$rid=1&$version=6', { status: 204, requestId: '1', version: 6 }],
    ['$iothub/twin/res/204/?$version=x&$rid=1', { status: 204, requestId: '1' }],
    ['$iothub/twin/res/20/?$rid=1', undefined],
    ['$iothub/twin/res/2000/?$rid=1', undefined],
    ['$iothub/twin/res/002/?$rid=1', undefined],
    ['$iothub/twin/res/200/?rid=1', undefined],
    ['$iothub/twin/res/200', undefined],
  ])('of an answer about the twin: %s', (topic, expected) => {
    expect(parseTwinResponse(topic)).toEqual(expected)
  })

  it.each([
    ['$iothub/twin/PATCH/properties/desired/?$version=5', { version: 5 }],
    ['$iothub/twin/PATCH/properties/desired/?', { version: undefined }],
    ['$iothub/twin/PATCH/properties/desired/', undefined],
    ['$iothub/twin/PATCH/properties/reported/?$version=5', undefined],
  ])('of a desired change: %s', (topic, expected) => {
    expect(parseDesiredTopic(topic)).toEqual(expected)
  })
})

describe('a property bag', () => {
  it('comes back as it went, whatever text it carries', () => {
    const text = fc.string({ unit: 'grapheme', maxLength: 20 })
    const name = text.filter(
      (key) => key !== '' && !key.startsWith('$.') && !['__proto__', 'iothub-ack'].includes(key),
    )
    fc.assert(
      fc.property(
        fc.dictionary(name, text),
        fc.option(text, { nil: undefined }),
        (properties, contentType) => {
          const bag = encodePropertyBag({ contentType, properties })
          expect(bag).toMatch(/^[!-~]*$/)
          expect(bag).not.toMatch(/[#+/]/)
          const back = decodePropertyBag(bag)!
          expect(Object.entries(back.properties).sort()).toEqual(Object.entries(properties).sort())
          expect(back.contentType).toBe(contentType)
        },
      ),
    )
  })

  it('of anything at all is read without a crash', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (bag) => {
        const read = decodePropertyBag(bag)
        if (read !== undefined) expect(Object.hasOwn(read.properties, '__proto__')).toBe(false)
      }),
    )
  })

  it('cannot pollute what it is merged into', () => {
    expect(decodePropertyBag('__proto__=x&%5f%5fproto%5f%5f=y&a=1')?.properties).toEqual({ a: '1' })
  })

  it('takes the last of a name that is repeated', () => {
    expect(decodePropertyBag('a=1&a=2')?.properties).toEqual({ a: '2' })
  })

  it.each([
    ['a name of the hub', { '$.mid': 'x' }, /properties\["\$\.mid"\] begins with \$\./],
    ['an empty name', { '': 'x' }, /empty name/],
    ['a number', { a: 1 as never }, /must be a string, not number/],
    ['half a surrogate pair', { a: '\ud800' }, /surrogate/],
  ])('with %s is refused', async (_, properties, message) => {
    const error = await expectDpsError(() => encodePropertyBag({ properties }), 'OPTION_INVALID', 'config')
    expect(error.message).toMatch(message)
  })

  it('that is longer than a topic can be is refused', async () => {
    const bag = { properties: { a: 'x'.repeat(65_535) } }
    const error = await expectDpsError(() => telemetryTopic(device, bag), 'OPTION_INVALID', 'config')
    expect(error.message).toContain('65535')
  })
})
