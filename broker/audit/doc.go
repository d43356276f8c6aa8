// Package audit owns the record that is made of every flow, and the file it is
// written to.
//
// A record holds every input of the decision and every outcome, as one JSON object a
// line. The file is a fixed one with rotation. It is no log for people: what the
// program itself has to say goes to log/slog.
//
// The package does not decide what a flow's outcome is, nor whether flows are refused
// while records cannot be written: it says so (Log.Ready) and the broker acts. It
// imports nothing of this module.
package audit
