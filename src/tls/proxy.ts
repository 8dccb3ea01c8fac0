import { BlockList, isIP } from 'node:net'
import { Secret } from '../credential/secret.ts'
import { DpsError } from '../errors.ts'
import type { ProxyOptions } from '../options/options.ts'
import { refuseUnknown } from '../options/resolve.ts'
import { authority } from '../protocol/http-connect.ts'

/** An HTTP proxy that opens tunnels with CONNECT, checked. */
export interface HttpProxy {
  readonly host: string
  readonly port: number
  /** `host:port`: all that may be printed of it. */
  readonly name: string
  /** The value of `Proxy-Authorization`. */
  readonly authorization: Secret<string> | undefined
  /** Whether `host` and `port` are to be dialled without it. */
  bypasses(host: string, port: number): boolean
}

type Environment = Readonly<Record<string, string | undefined>>

const KNOWN = new Set(['url', 'username', 'password', 'noProxy'])

const URL_VARIABLES = ['https_proxy', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'] as const
const EXCEPTION_VARIABLES = ['no_proxy', 'NO_PROXY'] as const

/**
 * The proxy that the option `proxy` names, or undefined where it names none. The environment is read here, once, and only
 * when the option says so.
 *
 * @throws DpsError OPTION_INVALID, phase `config`; its message never quotes a URL, which may hold a password
 */
export function resolveProxy(
  option: string | ProxyOptions | undefined,
  environment: Environment = process.env,
): HttpProxy | undefined {
  if (option === undefined) return undefined
  if (option === 'environment') return fromEnvironment(environment)
  if (typeof option === 'string') return build('proxy', option, undefined, () => false)
  if (typeof option !== 'object' || option === null || Array.isArray(option)) {
    throw invalid('proxy', "must be an http:// URL, { url, username, password, noProxy } or 'environment'")
  }
  refuseUnknown('proxy.', option, KNOWN)
  const { url, username, password, noProxy } = option
  const given = username === undefined && password === undefined ? undefined : { username, password }
  return build('proxy.url', url, given, exceptions(noProxy))
}

function fromEnvironment(environment: Environment): HttpProxy | undefined {
  // The first that is set decides, as it does for curl: an empty one says "no proxy".
  const variable = URL_VARIABLES.find((name) => environment[name] !== undefined)
  const url = variable === undefined ? undefined : environment[variable]?.trim()
  if (variable === undefined || url === undefined || url === '') return undefined
  const list = EXCEPTION_VARIABLES.map((name) => environment[name]).find((value) => value !== undefined) ?? ''
  // Other programs read these variables too, and allow `host:port` alone.
  return build(
    `proxy: the environment variable ${variable}`,
    url.includes('://') ? url : `http://${url}`,
    undefined,
    matcher(split(list).flatMap((entry) => parseException(entry) ?? [])),
  )
}

function build(
  name: string,
  text: unknown,
  credentials: { username: unknown; password: unknown } | undefined,
  bypasses: HttpProxy['bypasses'],
): HttpProxy {
  const url = typeof text === 'string' && URL.canParse(text.trim()) ? new URL(text.trim()) : undefined
  if (url === undefined) throw invalid(name, 'must be a URL such as http://proxy.example:3128')
  if (url.protocol !== 'http:') {
    throw invalid(
      name,
      'must begin with http://: HTTP proxies that open tunnels with CONNECT are supported; for SOCKS, or TLS to the proxy itself, use `connect`',
    )
  }
  if (url.pathname !== '/' || url.search !== '' || url.hash !== '') {
    throw invalid(name, 'must end after the port: a proxy has no path')
  }
  const inUrl = url.username !== '' || url.password !== ''
  if (inUrl && credentials !== undefined) {
    throw invalid(
      name,
      'must not contain a user name or password when proxy.username or proxy.password is given',
    )
  }
  const host = url.hostname.replace(/^\[|\]$/g, '')
  const port = url.port === '' ? 80 : Number(url.port)
  if (port === 0) throw invalid(name, 'must have a port from 1 to 65535')
  const authorization = inUrl
    ? basic(name, decoded(name, url.username), decoded(name, url.password))
    : credentials &&
      basic('proxy.username and proxy.password', credentials.username ?? '', credentials.password ?? '')
  return Object.freeze({ host, port, name: authority(host, port), authorization, bypasses })
}

function decoded(name: string, text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    throw invalid(name, 'has a user name or password that is not percent-encoded UTF-8')
  }
}

/** RFC 7617 §2: no colon in the user name, no control characters in either; UTF-8. */
function basic(name: string, username: unknown, password: unknown): Secret<string> {
  if (typeof username !== 'string' || typeof password !== 'string') throw invalid(name, 'must be strings')
  if (username.includes(':')) throw invalid(name, 'must not have a colon in the user name')
  if (/\p{Cc}/u.test(username + password)) throw invalid(name, 'must not contain control characters')
  return new Secret(`Basic ${Buffer.from(`${username}:${password}`, 'utf8').toString('base64')}`)
}

/** One rule of a list of exceptions; `port` undefined means every port. */
interface Exception {
  readonly port: number | undefined
  matches(host: string): boolean
}

const split = (list: string): string[] => list.split(/[\s,]+/).filter((entry) => entry !== '')

function exceptions(option: unknown): HttpProxy['bypasses'] {
  const entries = typeof option === 'string' ? split(option) : (option ?? [])
  if (!Array.isArray(entries)) throw invalid('proxy.noProxy', 'must be a string or an array of strings')
  return matcher(
    entries.map((entry: unknown, index) => {
      const parsed = typeof entry === 'string' ? parseException(entry.trim()) : undefined
      if (parsed !== undefined) return parsed
      // It is not repeated: a URL in its place may hold a password.
      throw invalid(
        `proxy.noProxy[${index}]`,
        'must be a host name, .suffix, IP address or CIDR block, each with or without :port, or *',
      )
    }),
  )
}

function matcher(rules: readonly Exception[]): HttpProxy['bypasses'] {
  return (host, port) => {
    const name = host.toLowerCase().replace(/\.$/, '')
    return rules.some((rule) => (rule.port === undefined || rule.port === port) && rule.matches(name))
  }
}

function parseException(entry: string): Exception | undefined {
  if (entry === '*') return { port: undefined, matches: () => true }
  // A colon is part of an IPv6 address, and sets off a port from anything else.
  const [, bracketed, plain, digits] = /^(?:\[([^\]]+)\]|([^:]+))(?::(\d{1,5}))?$/.exec(entry) ?? []
  const text = bracketed ?? plain ?? (isIP(entry.replace(/\/\d+$/, '')) === 6 ? entry : undefined)
  if (text === undefined) return undefined
  const port = digits === undefined ? undefined : Number(digits)
  if (port !== undefined && (port < 1 || port > 65_535)) return undefined
  const matches = text.includes('/') || isIP(text) !== 0 ? matchAddress(text) : matchName(text)
  return matches && { port, matches }
}

function matchAddress(text: string): ((host: string) => boolean) | undefined {
  const [address = '', bits, ...rest] = text.split('/')
  const version = isIP(address)
  const all = version === 6 ? 128 : 32
  const prefix = bits === undefined ? all : /^\d{1,3}$/.test(bits) ? Number(bits) : Number.NaN
  if (version === 0 || rest.length > 0 || !(prefix <= all)) return undefined
  const block = new BlockList()
  block.addSubnet(address, prefix, version === 6 ? 'ipv6' : 'ipv4')
  return (host) => isIP(host) !== 0 && block.check(host, isIP(host) === 6 ? 'ipv6' : 'ipv4')
}

/** `example.com` is that name and all below it, `.example.com` and `*.example.com` only those below. */
function matchName(text: string): ((host: string) => boolean) | undefined {
  const name = text
    .toLowerCase()
    .replace(/^\*(?=\.)/, '')
    .replace(/(?<=.)\.$/, '')
  if (!/^\.?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*$/.test(name)) return undefined
  const suffix = name.startsWith('.') ? name : `.${name}`
  return (host) => isIP(host) === 0 && (host === name || host.endsWith(suffix))
}

function invalid(name: string, rule: string): DpsError {
  return new DpsError('OPTION_INVALID', 'config', `${name} ${rule}`)
}
