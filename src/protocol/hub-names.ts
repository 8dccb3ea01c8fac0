/** Whether a hub may be called so: a host name of letters, digits, dots and dashes. */
export function isHubHost(value: string): boolean {
  return value.length <= 253 && /^[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?$/.test(value)
}

/**
 * Whether a device or a module may be called so: 1 to 128 characters. It goes into topics and user names, so what would
 * change their meaning (`/`, `+`, `#`, `&`) is not in it.
 *
 * https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-identity-registry#device-identity-properties
 */
export function isHubIdentity(value: string): boolean {
  return /^[A-Za-z0-9\-._:%*?!(),=@$']{1,128}$/.test(value)
}
