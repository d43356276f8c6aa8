// Package egrep is the pattern language of filter rules: the "egrep" flavour of
// the SSH regular expressions, as sshregex(1) describes it for host, ip-address
// and application in ssh-broker-config(5). It owns the syntax, its limits and the
// matching; what a pattern is held against is its caller's business.
//
// A plain text, alone or with ".*" at one end, is compared. Any other pattern is
// made an automaton when it is compiled, which takes one step for each byte of
// text; where that would be large, it is translated to a Go regular expression.
// Either way matching is linear in the text, whatever pattern and text are. The
// whole text has to match. Needs tells those who hold many patterns against one
// text which of them are worth trying.
//
// # What the language means here
//
//   - Text is a string of bytes, as in the original: "." and a set match one byte,
//     \xe9 is the byte E9. A non-ASCII character written in a pattern is its UTF-8
//     bytes and is repeated as one ("é+"); in a set it is refused.
//   - "." matches every byte but \n, \f, \r and NUL. So does ".*", which is why a
//     path with a line feed in it is not matched by ".*".
//   - ^ and $ match at the ends of the text, and after and before a \n in it.
//   - Counts: {n} {n,} {n,m} {,n}, and {n,0} which is {n,}. {0,0} and {,0} could
//     mean either "none" or "any number" and are refused.
//   - Numeric escapes take as many digits as follow: \0 and octal digits, \1 to \9
//     and decimal digits (there are no back references), \x or \0x and hexadecimal
//     digits. A value above 255 is refused, never cut.
//   - A word is made of ASCII letters, digits and hyphens, as the manual page prints
//     it. An underscore is not part of a word. \w \W \< \> \b \B all go by this.
//   - \< (\>) is refused where it cannot be decided from the text on one side of it,
//     which is where neither a word character must follow (precede) it nor a
//     non-word character or the end of the text must precede (follow) it: ".*\<.*".
//   - \a \e \f \n \r \t are control characters. Every other escaped character is
//     itself; that goes for \d and \s too, which are "d" and "s".
//   - In a set, ^ right after [ complements, ] right after that is itself, and so is
//     a hyphen at either end. Escapes work, [:alpha:] and its kind too, by the C
//     locale. Complemented sets hold \n, \f, \r and NUL like any other byte.
//   - Repetition is always greedy; "a*?" is "(a*)?". There are only groups, no
//     captures; which alternative matched cannot be told.
//   - Ignoring case is ASCII only, so that no Kelvin sign passes for a k.
//
// Metacharacters that stand where they mean nothing (a lone ")", "]", "}", a "*"
// with nothing before it) are refused: they are far more often mistakes than text.
package egrep
