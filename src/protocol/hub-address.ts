/**
 * Who a device is at its IoT hub over MQTT 3.1.1: client id, user name and SAS resource, as functions of strings.
 *
 * https://learn.microsoft.com/azure/iot/iot-mqtt-connect-to-iot-hub
 */

/** The api-version of the hub that Microsoft's own device clients name. */
export const HUB_API_VERSION = '2021-04-12'

/** `wss://<hub>:443/$iothub/websocket`, sub-protocol `mqtt`; `$` is sent as it is. */
export const HUB_WEBSOCKET_PATH = '/$iothub/websocket'

/** Who connects: a device, or one module of it. All are expected to be valid already. */
export interface HubIdentity {
  readonly deviceId: string
  readonly moduleId?: string | undefined
}

export interface HubAddress extends HubIdentity {
  /** Host name of the hub; behind a gateway still that of the hub. */
  readonly hub: string
}

/** The MQTT client id: `my-device`, or `my-device/my-module`. */
export function hubClientId({ deviceId, moduleId }: HubIdentity): string {
  return moduleId === undefined ? deviceId : `${deviceId}/${moduleId}`
}

/**
 * The MQTT user name. Other than at the provisioning service, `/?` stands before `api-version`.
 *
 * `my-hub.azure-devices.net/my-device/?api-version=2021-04-12&DeviceClientType=dps-device-client%2F1.0.0`
 */
export function hubUserName({
  hub,
  apiVersion = HUB_API_VERSION,
  modelId,
  userAgent,
  ...identity
}: HubAddress & {
  readonly apiVersion?: string | undefined
  /** The DTDL model the device implements, `dtmi:…`. */
  readonly modelId?: string | undefined
  readonly userAgent?: string | undefined
}): string {
  const model = modelId === undefined ? '' : `&model-id=${encodeURIComponent(modelId)}`
  const client = userAgent === undefined ? '' : `&DeviceClientType=${encodeURIComponent(userAgent)}`
  return `${hub}/${hubClientId(identity)}/?api-version=${apiVersion}${model}${client}`
}

/**
 * The resource that a token for the hub is signed for, percent-encoded:
 * `my-hub.azure-devices.net%2Fdevices%2Fmy-device`, and `%2Fmodules%2Fmy-module` after it for a module.
 */
export function hubResource({ hub, deviceId, moduleId }: HubAddress): string {
  const module = moduleId === undefined ? '' : `/modules/${moduleId}`
  // Microsoft's clients encode these five too, which encodeURIComponent leaves as they are.
  return encodeURIComponent(`${hub}/devices/${deviceId}${module}`).replace(
    /[!'()*]/g,
    (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`,
  )
}
