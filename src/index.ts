export type {
  Assignment,
  AssignmentConnection,
  CertifiedAssignment,
  Contact,
  RegistrationState,
} from './assignment/assignment.ts'
export { fileStore } from './assignment/file-store.ts'
export {
  type HubAssignment,
  type HubMqttOptions,
  type HubOptions,
  type HubSettings,
  type HubTarget,
  type HubTlsOptions,
  type HubTransportName,
  hubSettings,
} from './assignment/hub.ts'
export { type ReprovisionOptions, shouldReprovision } from './assignment/should-reprovision.ts'
export type { AssignmentStore } from './assignment/store.ts'
export { ProvisioningClient } from './client.ts'
export { type Clock, systemClock } from './clock.ts'
export type { Credential, CurveName, Identity, TlsIdentity } from './credential/credential.ts'
export {
  type CertificateFacts,
  type CredentialFinding,
  type CredentialFindingId,
  type CredentialInspection,
  type FindingSeverity,
  type InspectOptions,
  inspectCredential,
} from './credential/inspection.ts'
export { type SasSignerOptions, type SymmetricKeyOptions, sasSigner, symmetricKey } from './credential/sas.ts'
export {
  type X509CertificateOptions,
  type X509KeyOptions,
  type X509Options,
  type X509Pkcs12Options,
  x509,
} from './credential/x509.ts'
export {
  DpsError,
  type DpsErrorCode,
  type DpsErrorDetails,
  type DpsErrorFamily,
  type DpsPhase,
} from './errors.ts'
export {
  type CertificateRequestOptions,
  type IssuedCertificate,
  type IssuedCertificateFacts,
  type IssuedCertificateOptions,
  type IssuedCertificateRequest,
  type IssuedCertificateStatus,
  issuedCertificate,
} from './issued-certificate.ts'
export type {
  CallOptions,
  ConnectFunction,
  ConnectTarget,
  DpsEvent,
  MqttOptions,
  PemInput,
  ProvisioningClientOptions,
  ProxyOptions,
  RegisterOptions,
  RetryOptions,
  TimeoutOptions,
  TlsOptions,
  TransportChoice,
  TrustOptions,
  WaitForClockOptions,
} from './options/options.ts'
export type { DeviceRegistration, RegistrationRecord } from './protocol/response.ts'
export {
  type ProvisionedAssignment,
  type ProvisionMode,
  type ProvisionOptions,
  provision,
} from './provision.ts'
export { provisionForever } from './provision-forever.ts'
export {
  type DeviceJournal,
  fileJournal,
  type ManyDevice,
  type ManyResult,
  type OpenJournal,
  type ProvisionManyOptions,
  provisionMany,
} from './provision-many.ts'
export type { PhaseTimings } from './registration/phases.ts'
export { BUNDLED_ROOTS, type BundledRoot } from './tls/roots.ts'
export type {
  ConnectionFacts,
  DialedSocket,
  RawReply,
  TlsFacts,
  Transport,
  TransportContext,
  TransportName,
  TransportRequest,
  TransportSession,
} from './transport/transport.ts'
