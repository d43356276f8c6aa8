// Package replace puts new content in the place of a small file: whole or not at all,
// even if the disk is full, the process is killed or the host fails in between.
//
// It owns how a file is replaced: who may read it afterwards, what links to it, the
// lock against a second editor of this kind, and the check that nobody has changed it
// meanwhile. It does not know what is in the file.
//
// A File is for one goroutine.
package replace
