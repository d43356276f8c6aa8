// Package netns builds small networks on one machine for tests: network
// namespaces joined by veth pairs, real servers in them, ordinary users, a view
// of every frame on the wire, and an account of what was there before and after.
//
// New makes two machines:
//
//	   client                                     server
//	┌───────────────────────┐                  ┌───────────────────────┐
//	│ to-server             │      veth        │             to-client │
//	│   10.99.1.1/24        ├──────────────────┤ 10.99.1.2/24          │
//	│   fd99:1::1/64        │                  │ fd99:1::2/64          │
//	│ default via server    │                  │ forwards nothing      │
//	└───────────────────────┘                  └───────────────────────┘
//
// NewBastion adds a network that only the server reaches; the name db.internal
// is known there and nowhere else:
//
//	   client                    server                     inner
//	┌─────────────┐         ┌────────────────┐         ┌──────────────────┐
//	│ to-server   │  veth   │ to-client      │         │ to-server        │
//	│  10.99.1.1  ├─────────┤  10.99.1.2     │  veth   │  10.99.2.2       │
//	│  fd99:1::1  │         │  fd99:1::2     │         │  fd99:2::2       │
//	│             │         │ to-inner       ├─────────┤  db.internal     │
//	│             │         │  10.99.2.1     │         │ no route to      │
//	│             │         │  fd99:2::1     │         │ the client       │
//	└─────────────┘         └────────────────┘         └──────────────────┘
//
// A packet of the client's for any other address arrives at the server and is
// dropped there without an answer.
//
// A Machine is a network, mount and UTS namespace, held by one thread of the test
// process and nowhere named: it is gone with the process, however that ends.
// Files below /etc that tests change (hosts, resolv.conf, passwd) are replaced by
// bind mounts inside the machine, so users and names of a test exist in its
// machines only. /tmp is everybody's; server and inner have a /run and a /var/log
// of their own.
//
// Everything a test starts dies with the test: it is killed when the test ends,
// and by the kernel (PR_SET_PDEATHSIG) should the test process die first.
//
// All of this needs root. Without it, or without a Debian package, tests skip and
// say why; with CI=true in the environment they fail instead.
//
// A Net belongs to the test that made it. Its methods may be used by several
// goroutines, but those taking a testing.TB only as testing.TB.FailNow allows.
package netns
