// Package service is what ssh-captured and its clients say to one another: JSON
// messages with descriptors over a Unix socket (SOCK_SEQPACKET), each side's half of
// it typed in one struct.
//
//	client                          ssh-captured
//	hello                      ->
//	                           <-   hello
//	make, enter, serve, ...    ->        a request, with a number
//	                           <-   answer       with the same number
//	                           <-   attempt      to whoever serves the capture
//	admit, hand, origin, waits ->        requests about an attempt
//	refuse, pass               ->        about an attempt; no answer
//
// Who asks is known by the socket's peer credentials alone. A connection that ends
// gives up what it served: its undecided attempts wait for the next one that serves
// the capture, and are then handed to that.
//
// When ssh-captured itself is gone a client connects again, says hello and serve once
// more with Resume set, and gets the attempts that are still held, anew. It knows them
// by source, destination and sequence number, which stay, while their ids are new.
//
// The package owns the vocabulary. The server is capture/captured, the client
// capture/service/client.
package service
