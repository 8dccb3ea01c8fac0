// What few credentials need, in one file that is loaded for them alone.
export { orderChain } from './chain.ts'
export { explainRefusal, warningsAbout } from './doubt.ts'
export { inspectCredential } from './inspect/inspect.ts'
export { readPkcs12 } from './pkcs12.ts'
