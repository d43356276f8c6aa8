// Package loglimit keeps a log from being filled by whoever can have a line repeated: a
// handler for log/slog that lets so many lines of a kind through, counts the others, and
// says from time to time how many they were. A kind is the text of the message, which in
// this module is constant; what varies stands in attributes.
//
// Programs put it around their handler, so that no line goes round it. It imports nothing
// of this module.
package loglimit
