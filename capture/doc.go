// Package capture is the contract between whatever catches connections in the
// kernel and the broker that decides what becomes of them.
//
// It owns the words (flow, attempt, origin, refusal), the two interfaces that a
// backend implements, and the mark bits that its rules and verdicts share. It
// holds no policy: it does not know rules, profiles or names, and imports nothing
// else of this module. The backends live in the packages below it.
package capture
