// Package kubeconfig leads clusters of a kubeconfig(5) through a local proxy, by their
// proxy-url, and undoes that.
//
// It owns where in the bytes of a file an entry goes and how it is written. It splices:
// what is outside of the entry stays as it is byte for byte, be it comments, the order of
// keys, quotes or line ends, in block style, flow style and JSON. Every result is parsed
// again and compared with what was to come out.
//
// What was done is marked in the cluster's extensions, the place that Kubernetes has for
// others' data: kubectl carries them along when it writes the file anew, as it does for
// "config use-context", and drops comments. The mark has what stood there before, so that
// the undoing gives the same bytes where nobody has touched the rest meanwhile, and the
// same values where kubectl has.
//
// It also owns how files are found and locked, which is as kubectl does it. It does not
// know what the proxy is, nor whether there is one.
//
// A Text is not changed once made and is safe for concurrent use; a File is for one
// goroutine.
package kubeconfig
