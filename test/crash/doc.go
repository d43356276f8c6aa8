// Package crash tests what becomes of captured flows when ssh-captured, its keeper, a
// broker or all of them die at any point, are stopped, stand still, or run short of what
// they need. What crosses the wire is the judge, and what connect() said.
package crash
