// Package edit changes the filter rules of a configuration file and nothing else in it.
//
// It owns where in the bytes of a file a rule goes and how it is written; how a file is
// replaced is that of package replace. It splices: what is outside of the rule stays as
// it is byte for byte, be it comments, the order of attributes, line ends or an odd
// encoding. A rule takes its line with it where it stands alone there; comments stay.
// Every result is parsed again and compared with what was to come out.
//
// It does not know what a rule means nor judge it: whether the result is a good
// configuration the caller has checked, by config.CheckText, before it is written.
//
// A Text is not changed once made and is safe for concurrent use.
package edit
