export type { ContractCase, TransportContractOptions } from './transport-contract.ts'
export { transportContract } from './transport-contract.ts'
