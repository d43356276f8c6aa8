// Package prompt puts the broker's questions to people: at the terminal of a process, or
// by an askpass program as ssh(1) runs one. It does not know what is asked, and keeps
// no answer.
package prompt
