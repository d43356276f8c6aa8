// Package guards has other programs' firewalls meet ours: rules that rewrite marks,
// divert first, refuse, route by mark, flush and delete, each loaded before and after
// ours. What a rule protects never leaves in clear, whatever they do, which captures on
// the wire prove, each with a control that the foreign rule does what it says where
// nothing is captured.
package guards
