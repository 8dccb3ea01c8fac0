export type { HubAssignment, HubTransportName } from '../assignment/hub.ts'
export {
  DpsError,
  type DpsErrorCode,
  type DpsErrorDetails,
  type DpsErrorFamily,
  type DpsPhase,
} from '../errors.ts'
export type { IncomingProperties, OutgoingProperties } from '../protocol/hub-wire.ts'
export type { Command, CommandHandler } from './commands.ts'
export {
  connectHub,
  type HubOnlyOptions,
  type IssuanceOptions,
  type ProvisionAndConnectOptions,
  provisionAndConnect,
} from './connect.ts'
export type {
  CloseOptions,
  HubConnection,
  HubState,
  RequestCertificateOptions,
  TelemetryOptions,
} from './connection.ts'
export type { MethodAnswer, MethodHandler, MethodRequest } from './methods.ts'
export type { ConnectHubOptions, HubEvent, QueueOptions } from './options.ts'
export type { DesiredChange, DesiredHandler, Twin, TwinOptions, TwinProperties, TwinSide } from './twin.ts'
