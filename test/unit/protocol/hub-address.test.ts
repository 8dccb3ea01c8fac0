import { describe, expect, it } from 'vitest'
import {
  HUB_WEBSOCKET_PATH,
  hubClientId,
  hubResource,
  hubUserName,
} from '../../../src/protocol/hub-address.ts'
import { isHubHost, isHubIdentity } from '../../../src/protocol/hub-names.ts'

const device = { deviceId: 'my-device' }
const module = { deviceId: 'my-device', moduleId: 'my-module' }
const hub = 'my-hub.azure-devices.net'

describe('who connects', () => {
  it('is named as the hub expects', () => {
    expect(hubClientId(device)).toBe('my-device')
    expect(hubClientId(module)).toBe('my-device/my-module')
    expect(hubUserName({ hub, ...device })).toBe('my-hub.azure-devices.net/my-device/?api-version=2021-04-12')
    expect(
      hubUserName({
        hub,
        ...module,
        apiVersion: '2020-09-30',
        modelId: 'dtmi:com:example:Pump;1',
        userAgent: 'dps-device-client/1.0.0',
      }),
    ).toBe(
      'my-hub.azure-devices.net/my-device/my-module/?api-version=2020-09-30&model-id=dtmi%3Acom%3Aexample%3APump%3B1&DeviceClientType=dps-device-client%2F1.0.0',
    )
    expect(HUB_WEBSOCKET_PATH).toBe('/$iothub/websocket')
  })

  it.each([
    [{ hub, ...device }, 'my-hub.azure-devices.net%2Fdevices%2Fmy-device'],
    [{ hub, ...module }, 'my-hub.azure-devices.net%2Fdevices%2Fmy-device%2Fmodules%2Fmy-module'],
    // As Microsoft's clients encode it: "encode('Me')" becomes encode%28%27Me%27%29.
    [{ hub: 'h', deviceId: "encode('Me')" }, 'h%2Fdevices%2Fencode%28%27Me%27%29'],
    [{ hub: 'broker.example', deviceId: 'd@v%1' }, 'broker.example%2Fdevices%2Fd%40v%251'],
  ])('%o signs for %s', (address, resource) => {
    expect(hubResource(address)).toBe(resource)
  })

  it.each([
    ['a', true],
    ['My-Hub.azure-devices.net', true],
    ['', false],
    ['hub.', false],
    ['-hub', false],
    ['hub/x', false],
    ['hub\n', false],
    [`${'h'.repeat(253)}`, true],
    [`${'h'.repeat(254)}`, false],
  ])('host %j: %s', (name, ok) => {
    expect(isHubHost(name)).toBe(ok)
  })

  it.each([
    ["Aa0-._:%*?!(),=@$'", true],
    ['$edgeAgent', true],
    ['', false],
    ['a/b', false],
    ['a+', false],
    ['a#', false],
    ['a&b', false],
    ['a b', false],
    ['ä', false],
    ['d\n', false],
    ['d'.repeat(128), true],
    ['d'.repeat(129), false],
  ])('identity %j: %s', (name, ok) => {
    expect(isHubIdentity(name)).toBe(ok)
  })
})
