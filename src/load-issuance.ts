/** What few registrations need, once one does. In one place: each file that loads another carries the means for that. */
export const loadIssuance = () => import('./issuance.ts')
