// Package plan compiles filter rules for the kernel: what of a rule set can be
// decided by address and port alone becomes a capture.Spec, and all else is asked.
//
// It owns the translation, that of address patterns to prefixes included, and
// the invariant that holds for it: a flow that the Spec does not ask about is
// decided as filter.Set.Decide would, whatever its names, program and owner are.
// Asking too much is slow; asking too little would be wrong. Pools, local
// destinations and exempt servers stand before the rules and are not the rules'.
//
// It is pure, and knows neither how a Spec gets into the kernel nor who answers.
package plan
