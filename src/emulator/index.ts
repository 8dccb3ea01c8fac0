export type { ClientHelloFacts } from './client-hello.ts'
export type {
  AssigningOptions,
  Emulator,
  EmulatorClientOptions,
  EmulatorHubOptions,
  EmulatorOptions,
  HubRenewalOptions,
  Registrations,
} from './emulator.ts'
export { startEmulator } from './emulator.ts'
export type {
  AllocationRequest,
  EnrollmentGroup,
  EnrollmentInfo,
  EnrollmentKeys,
  EnrollmentPolicy,
  EnrollmentRef,
  Enrollments,
  IndividualEnrollment,
  SymmetricKeyAttestation,
} from './enrollments.ts'
export { generateSymmetricKey } from './enrollments.ts'
export type {
  ConnectionFault,
  Fault,
  FaultActions,
  FaultPoint,
  FaultSpec,
  FaultStep,
  Faults,
  IssueFault,
  LookupReplyFault,
  RawContext,
  RawFault,
  RenewalReplyFault,
  ReplyFault,
  ReplyStepFault,
  RequestDelivery,
  RequestFault,
  TwinReplyFault,
} from './faults.ts'
export { FAULT_ACTIONS } from './faults.ts'
export type { EmulatorTlsOptions, ServerCertificate } from './fronts/listener.ts'
export type {
  CommandOptions,
  EmulatedHub,
  HubDeviceInfo,
  HubDeviceOptions,
  HubDeviceRef,
  HubDisconnect,
  HubEnding,
  MethodOptions,
  MethodResult,
  SentCommand,
  Telemetry,
  TelemetryMatch,
  TelemetryRecord,
} from './hub/hub.ts'
export type { MessageProperties } from './hub/topics.ts'
export type { TwinDocument, TwinProperties, TwinSide } from './hub/twin.ts'
export type {
  Issuance,
  IssuanceCurve,
  IssuancePolicy,
  IssuedCertificateInfo,
} from './issuance/authority.ts'
export type {
  ConnectionRecord,
  EmulatorEvent,
  EmulatorLog,
  HandshakeFacts,
  PacketRecord,
} from './journal.ts'
export type {
  CertificateIssuer,
  CertificateKeyType,
  CreatePkiOptions,
  DeviceCertificate,
  DeviceCertificateOptions,
  ExtendedKeyUsageName,
  IssueCertificateOptions,
  IssuedCertificate,
  KeyUsageName,
  Pki,
  SignatureDigest,
  SignedCertificate,
} from './pki.ts'
export { createPki, issueCertificate } from './pki.ts'
export type { RefusalReason, Registration, ScriptedOutcome } from './service.ts'
