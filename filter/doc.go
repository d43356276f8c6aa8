// Package filter decides what becomes of a flow: the vocabulary of rules, the
// order in which they are matched, the name of the rule that decided, and which rules
// never will.
//
// A Set is made once for many flows. NewSet puts each rule where one of its
// conditions can be looked up (index, ways), Decide looks up what the flow has and
// holds only the rules it finds there against it (search), and matcher alone says
// whether a rule matches. Explain does without the index.
//
// It is pure. It does no I/O, knows no clock, resolves no name, looks at no
// process and reads no XML; what it has to know about a flow is handed to it. It
// imports nothing else of this module but its own pattern language.
package filter
