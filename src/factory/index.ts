export type { DeriveDeviceKeyOptions } from './derive-device-key.ts'
export { deriveDeviceKey } from './derive-device-key.ts'
