import { systemClock } from '../../clock.ts'
import { DpsError, ERROR_CODES } from '../../errors.ts'
import { registrationIdFault, sameRegistrationId } from '../../protocol/registration-id.ts'
import type { Credential, Identity } from '../credential.ts'
import type { CredentialInspection, InspectionTools, InspectOptions } from '../inspection.ts'
import { factsOf } from './certificate.ts'
import { Findings } from './findings.ts'
import { inspectKey, inspectSigner } from './sas.ts'
import { unseenCauses } from './unseen.ts'
import { inspectX509, type Presented, said, sourcesOf, sourcesOfIdentity } from './x509.ts'

const OPTIONS = new Set(['registrationId', 'now'])

/** What the function of this name in `inspection.ts` loads and calls. */
export async function inspectCredential(
  credential: Credential | readonly Credential[],
  options: InspectOptions,
  tools: InspectionTools,
): Promise<CredentialInspection | readonly CredentialInspection[]> {
  const { instant, object, refuseUnknown } = tools
  refuseUnknown('', object('options', options), OPTIONS)
  const { registrationId, now } = options
  const nowMs = now === undefined ? systemClock.now() : instant('now', now)
  if (registrationId !== undefined && typeof registrationId !== 'string')
    throw invalid('`registrationId` must be a string')
  const all: readonly Credential[] = Array.isArray(credential) ? credential : [credential as Credential]
  if (all.length === 0 || all.some((one) => typeof one?.load !== 'function'))
    throw invalid('credential must be made by x509, symmetricKey or sasSigner, or have a function `load`')
  const inspected: Inspected[] = []
  for (const one of all) {
    const next = await inspectOne(one, registrationId, nowMs, tools)
    compare(next, inspected)
    inspected.push(next)
  }
  const results = inspected.map((one, index) => resultOf(one, index))
  return Array.isArray(credential) ? Object.freeze(results) : results[0]!
}

function invalid(message: string): DpsError {
  return new DpsError('OPTION_INVALID', 'config', message)
}

type Kind = Exclude<CredentialInspection['kind'], undefined>

interface Inspected {
  readonly findings: Findings
  readonly kind: Kind | undefined
  readonly chain: Presented['chain']
  readonly registrationId: string | undefined
  readonly identity: Identity | undefined
}

async function inspectOne(
  credential: Credential,
  expected: string | undefined,
  nowMs: number,
  tools: InspectionTools,
): Promise<Inspected> {
  const findings = new Findings()
  const material = tools.materialOf(credential)
  let identity: Identity | undefined
  let refusal: unknown
  try {
    identity = await credential.load()
  } catch (error) {
    refusal = error ?? 'nothing'
  }
  let kind: Kind | undefined = material?.kind
  let presented: Presented = { chain: [] }
  let own: string | undefined
  switch (material?.kind) {
    case 'x509': {
      const options = material.options.reveal()
      own = options.registrationId
      presented = await inspectX509(sourcesOf(options), nowMs, findings)
      break
    }
    case 'symmetric-key': {
      const options = material.options.reveal()
      own = options.registrationId
      await inspectKey(options, findings)
      break
    }
    case 'sas-signer':
      own = material.options.reveal().registrationId
      await inspectSigner(identity!, findings)
      break
    default:
      if (refusal !== undefined) break
      try {
        own = `${identity!.registrationId}`
        const { tls } = identity!
        if (tls?.cert !== undefined || tls?.pfx !== undefined) {
          kind = 'x509'
          presented = await inspectX509(sourcesOfIdentity(tls), nowMs, findings)
        }
      } catch {
        findings.add('credential-refused', '`load` resolves with what is no identity')
      }
  }
  const { chain, registrationId = own } = presented
  inspectId(own, findings)
  inspectId(expected, findings)
  compareIds(own, presented.registrationId, findings)
  compareIds(expected, registrationId, findings)
  if (kind !== 'x509' && registrationId !== undefined && /[A-Z]/.test(registrationId)) {
    findings.add('registration-id-case', `The registration id "${registrationId}" has upper-case letters`)
  }
  if (refusal !== undefined && !findings.hasError) {
    findings.add('credential-refused', `\`load\` rejects${reasonOf(refusal, material !== undefined)}`)
  }
  if (identity !== undefined) checkDates(identity, nowMs, findings)
  const isValid = registrationId !== undefined && registrationIdFault(registrationId) === undefined
  return { findings, kind, chain, registrationId: isValid ? registrationId : undefined, identity }
}

function inspectId(id: string | undefined, findings: Findings): void {
  const fault = id === undefined ? undefined : registrationIdFault(id)
  if (fault !== undefined) findings.add('registration-id-invalid', `The registration id ${fault}`)
}

function compareIds(expected: string | undefined, found: string | undefined, findings: Findings): void {
  if (expected === undefined || found === undefined || sameRegistrationId(expected, found)) return
  if ([expected, found].some((id) => registrationIdFault(id) !== undefined)) return
  findings.add('registration-id-differs', `The credential is of "${found}", not of "${expected}"`)
}

/** What the caller's own code says may hold anything. */
function reasonOf(refusal: unknown, isOurs: boolean): string {
  if (!DpsError.is(refusal)) return ' with what is no DpsError'
  const code = Object.hasOwn(ERROR_CODES, refusal.code) ? refusal.code : 'a code that is not known'
  return ` with ${code}${isOurs ? `: ${said(refusal, '')}` : ''}`
}

/** The last word has what a registration asks. */
function checkDates(identity: Identity, nowMs: number, findings: Findings): void {
  if (findings.has('expired', 'not-yet-valid')) return
  try {
    identity.checkDates(nowMs)
  } catch (error) {
    const code = DpsError.is(error) ? error.code : undefined
    if (code === 'DEVICE_CERTIFICATE_EXPIRED')
      findings.add('expired', 'The credential says that it has expired')
    else if (code === 'DEVICE_CERTIFICATE_NOT_YET_VALID') {
      findings.add('not-yet-valid', 'The credential says that it is not valid yet')
    } else findings.add('credential-refused', `\`checkDates\` fails${reasonOf(error, false)}`)
  }
}

/** With those before it in the list. */
function compare({ findings, registrationId, identity }: Inspected, before: readonly Inspected[]): void {
  const first = before.find((other) => other.registrationId !== undefined)?.registrationId
  if (first !== undefined && registrationId !== undefined && !sameRegistrationId(first, registrationId)) {
    const message = `It is of "${registrationId}", and one before it in the list of "${first}"`
    findings.add('credential-of-another-device', message)
  }
  const same = before.findIndex(
    (other) => other.identity && other.identity.fingerprint === identity?.fingerprint,
  )
  if (same !== -1) findings.add('credential-repeated', `It has the same content as credential[${same}]`)
}

function resultOf({ findings, kind, chain, registrationId }: Inspected, index: number): CredentialInspection {
  const facts = Object.freeze(chain.map(factsOf))
  return Object.freeze({
    ok: !findings.hasError,
    index,
    ...(kind && { kind }),
    ...(registrationId !== undefined && { registrationId }),
    ...(facts[0] && { keyType: facts[0].keyType }),
    chain: facts,
    findings: Object.freeze(findings.all),
    unseen: Object.freeze(unseenCauses(registrationId, facts)),
  })
}
