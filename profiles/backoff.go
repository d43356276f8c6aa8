package profiles

import (
	"errors"
	"time"
)

// How long a way out rests after a failure. Each failure in a row doubles the rest.
// sshd of OpenSSH 9.8 and newer penalises an address for 1 to 5 s a failed
// authentication and adds them up (sshd_config, PerSourcePenalties), and refuses
// starts at random from ten unfinished ones on (MaxStartups): one attempt at a time
// with these rests stays below both.
const (
	restConnect    = time.Second
	restConnectMax = time.Minute
	restRefusal    = 15 * time.Second // the server said no to us, or we to its key
	restRefusalMax = 10 * time.Minute

	// A transport that lived this long was a good one; when it is lost the next
	// attempt goes out at once.
	provenAfter = 10 * time.Second
)

// backoff remembers the failures of one way out.
type backoff struct {
	failures int
	last     error
	until    time.Time
}

// failed counts a failure and rests. spread is between 0 and 1 and moves the rest
// by up to a quarter each way, so that many hosts do not return in step.
func (b *backoff) failed(now time.Time, err error, spread float64) {
	if errors.Is(err, ErrAuth) || errors.Is(err, ErrHostKey) {
		b.refused(now, err, spread)
		return
	}
	b.rests(now, err, spread, restConnect, restConnectMax)
}

// refused is failed where the server, or we, said no.
func (b *backoff) refused(now time.Time, err error, spread float64) {
	b.rests(now, err, spread, restRefusal, restRefusalMax)
}

func (b *backoff) rests(now time.Time, err error, spread float64, rest, most time.Duration) {
	for i := 0; i < b.failures && rest < most; i++ {
		rest *= 2
	}
	rest = min(rest, most)
	rest += time.Duration((spread - 0.5) / 2 * float64(rest))
	b.failures++
	b.last = err
	b.until = now.Add(rest)
}

// lost counts the end of a transport that lived for a while.
func (b *backoff) lost(now time.Time, lived time.Duration, err error, spread float64) {
	if lived >= provenAfter {
		*b = backoff{last: err}
		return
	}
	b.failed(now, err, spread)
}

// rest is how long is left to wait; zero or less when an attempt may go out.
func (b *backoff) rest(now time.Time) time.Duration { return b.until.Sub(now) }
