// Ssh-broker-ctl looks at a running broker and tells it what to do: start, stop,
// reload, status, lists, and explain, which says what becomes of a connection and
// why. It checks configuration files, prints what they say and edits their rules
// without a broker.
//
// It prints tables for people, or with -s one JSON object a line, whose members are
// those of the rows in broker/control where they come from a broker. It decides nothing
// itself.
package main
