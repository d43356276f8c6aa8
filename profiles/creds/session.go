package creds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
)

// How often a person may answer wrongly before the next method has its turn. OpenSSH
// allows the same (ssh_config(5), NumberOfPasswordPrompts).
const personTries = 3

// errExhausted ends an authentication when nothing is left to try.
var errExhausted = errors.New("nothing left to try")

// Session is one authentication to one server. It is not safe for concurrent use;
// the caller closes it when the handshake is over.
type Session struct {
	// Observe is told what becomes of keys; it is set before Next.
	Observe profiles.Observer
	// Ring is what is known of keys beside their files; it is set before Next. nil: nothing.
	Ring *Keyring

	ctx     context.Context
	profile *profiles.Profile
	ask     profiles.Prompter
	log     *slog.Logger
	server  ssh.PublicKey // what it has proved itself with; nil before

	methods  []profiles.AuthMethod
	turn     int // of methods: whose turn it is
	keys     []*key
	loaded   bool
	agent    *agentConn
	tries    map[profiles.AuthMethod]int
	password *string // of the profile, once fetched
	gaveUp   map[profiles.AuthMethod]bool

	trail     []string // what was tried and what came of it, no secrets
	pending   string   // what is being tried
	touch     bool     // what is being tried takes a touch
	attended  bool     // a person had a part in it, or may have
	successes int
	started   bool
	lack      error // what of our own ran out, so that something was not tried
}

// NewSession prepares to prove who we are as p says. ask may be nil: then what needs
// a person is passed over with a reason.
func NewSession(ctx context.Context, p *profiles.Profile, ask profiles.Prompter, log *slog.Logger) *Session {
	s := &Session{
		ctx: ctx, profile: p, ask: ask, log: log,
		methods: p.AuthMethods,
		tries:   make(map[profiles.AuthMethod]int),
		gaveUp:  make(map[profiles.AuthMethod]bool),
	}
	if len(s.methods) == 0 {
		s.methods = []profiles.AuthMethod{profiles.PublicKey, profiles.KeyboardInteractive, profiles.Password}
	}
	return s
}

// Close lets go of the agent.
func (s *Session) Close() {
	if s.agent != nil {
		s.agent.Close()
	}
}

// Server says by which key or certificate the server has proved who it is.
func (s *Session) Server(key ssh.PublicKey) { s.server = key }

// Started tells whether the server asked for any proof.
func (s *Session) Started() bool { return s.started }

// Lack is not nil where something could not be tried for want of descriptors: a login that
// fails then is no word of the server's.
func (s *Session) Lack() error { return s.lack }

// Trail says what was tried and what came of each, for a message.
func (s *Session) Trail() string {
	if s.pending != "" {
		return strings.Join(append(slices.Clone(s.trail), s.pending+": no answer"), "; ")
	}
	return strings.Join(s.trail, "; ")
}

// Accepted is what was tried last, which the server took if it let us in; no secret. "none"
// where it wanted no proof.
func (s *Session) Accepted() string {
	if s.pending == "" {
		return "none"
	}
	return s.pending
}

// Attended tells whether a person had a part in a login that succeeded, or may have had
// one: another login would take that person again. Who answers for keyboard-interactive
// may have had to confirm it elsewhere, and a program that prints a password may ask, or
// print another one each time. Of an agent that asks before it signs nobody is told.
func (s *Session) Attended() bool { return s.attended || s.touch }

// tell tells what became of the key in a file.
func (s *Session) tell(kind profiles.EventKind, file, hash string, err error) {
	s.Observe.Tell(profiles.Event{Kind: kind, Profile: s.profile, File: file, KeyHash: hash, Err: err})
}

// Next chooses what to try; it is an ssh.ClientAuthCallback.
func (s *Session) Next(now *ssh.ClientAuthContext) (ssh.AuthMethod, error) {
	s.started = true
	if s.pending != "" {
		result := "refused"
		if len(now.PartialSuccessMethods) > s.successes {
			s.attended = s.attended || s.touch
			result = "accepted, the server wants more"
		}
		s.trail = append(s.trail, s.pending+": "+result)
		s.pending, s.touch = "", false
	}
	s.successes = len(now.PartialSuccessMethods)
	if err := s.ctx.Err(); err != nil {
		return nil, err
	}
	// Keys are tried to the end when their turn comes. Methods that ask a person take
	// turns, one question each, so that a mistyped password does not bar the other.
	for range len(s.methods) {
		m := s.methods[s.turn]
		if !s.gaveUp[m] && slices.Contains(now.AllowedMethods, wireName(m)) {
			method := s.try(m)
			if method != nil {
				if m != profiles.PublicKey {
					s.next()
				}
				return method, nil
			}
			s.gaveUp[m] = true
		}
		s.next()
	}
	allowed := strings.Join(now.AllowedMethods, ",")
	s.note("the server accepts " + profiles.RemoteText(allowed, 200, false))
	return nil, errExhausted
}

func (s *Session) next() { s.turn = (s.turn + 1) % len(s.methods) }

func wireName(m profiles.AuthMethod) string {
	switch m {
	case profiles.PublicKey:
		return "publickey"
	case profiles.Password:
		return "password"
	case profiles.KeyboardInteractive:
		return "keyboard-interactive"
	}
	return "unknown"
}

// note adds what was not even tried, and why.
func (s *Session) note(text string) { s.trail = append(s.trail, text) }

// notePlainly is note for what may come up again.
func (s *Session) notePlainly(text string) {
	if !slices.Contains(s.trail, text) {
		s.note(text)
	}
}

// failed notes what could not be tried because of err.
func (s *Session) failed(what string, err error) {
	s.noteLack(what, err)
	s.note(fmt.Sprintf("%s: %v", what, err))
}

// noteLack notes that it was a want of our own, if it was.
func (s *Session) noteLack(what string, err error) {
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		s.lack = fmt.Errorf("%s: %w", what, err)
	}
}

// try returns the next attempt by one method, nil when it has none left.
func (s *Session) try(m profiles.AuthMethod) ssh.AuthMethod {
	switch m {
	case profiles.PublicKey:
		return s.tryKey()
	case profiles.Password:
		return s.tryPassword()
	case profiles.KeyboardInteractive:
		return s.tryInteractive()
	}
	return nil
}

func (s *Session) tryKey() ssh.AuthMethod {
	if !s.loaded {
		s.loaded = true
		s.loadKeys()
	}
	for len(s.keys) > 0 {
		k := s.keys[0]
		s.keys = s.keys[1:]
		signer, err := k.signer()
		if err != nil {
			s.failed("publickey "+k.name, err)
			s.tell(profiles.IdentityFailed, k.name, "", err)
			continue
		}
		s.pending = fmt.Sprintf("publickey %s (%s)", k.name, ssh.FingerprintSHA256(signer.PublicKey()))
		s.touch = strings.HasPrefix(signer.PublicKey().Type(), "sk-") // of a security key, certified or not
		return ssh.PublicKeys(signer)
	}
	return nil
}

func (s *Session) tryPassword() ssh.AuthMethod {
	s.tries[profiles.Password]++
	secret, given, err := s.StoredPassword()
	switch {
	case err != nil:
		s.failed("password", err)
		return nil
	case given && s.tries[profiles.Password] > 1:
		return nil
	case given:
		s.pending = "password of the profile"
		return ssh.Password(secret)
	case s.ask == nil:
		s.note("password: none in the profile and nobody to ask")
		return nil
	case s.tries[profiles.Password] > personTries:
		return nil
	}
	s.pending = "password"
	return ssh.PasswordCallback(func() (string, error) {
		return s.question(fmt.Sprintf("Password for %s: ", s.account()), true)
	})
}

func (s *Session) tryInteractive() ssh.AuthMethod {
	s.tries[profiles.KeyboardInteractive]++
	secret, given, err := s.StoredPassword()
	if err != nil {
		s.failed("keyboard-interactive", err)
		given = false
	}
	if !given && s.ask == nil {
		s.note("keyboard-interactive: nobody to ask")
		return nil
	}
	if n := s.tries[profiles.KeyboardInteractive]; n > personTries || given && n > 1 && s.ask == nil {
		return nil
	}
	first := s.tries[profiles.KeyboardInteractive] == 1
	s.pending, s.attended = "keyboard-interactive", true
	return ssh.KeyboardInteractive(func(name, instruction string, questions []string, echos []bool) ([]string, error) {
		// A password of the profile answers the one hidden question that stands for it.
		if given && first && len(questions) == 1 && !echos[0] {
			first = false
			return []string{secret}, nil
		}
		if len(questions) > 0 && s.ask == nil {
			return nil, errors.New("the server asks something and nobody is there to answer")
		}
		answers := make([]string, len(questions))
		for i, q := range questions {
			text := profiles.RemoteText(q, 1000, true)
			if i == 0 {
				for _, more := range []string{instruction, name} {
					if more = strings.TrimSpace(profiles.RemoteText(more, 2000, true)); more != "" {
						text = more + "\n" + text
					}
				}
			}
			// The server writes the text, so say whose question it is.
			var err error
			if answers[i], err = s.question(fmt.Sprintf("(%s) %s", s.account(), text), !echos[i]); err != nil {
				return nil, err
			}
		}
		return answers, nil
	})
}

// question asks the person; an end of the person's patience ends the method.
func (s *Session) question(text string, secret bool) (string, error) {
	s.attended = true
	answer, err := s.ask.Ask(s.ctx, profiles.Prompt{Text: text, Secret: secret})
	if err != nil {
		s.note("question: " + err.Error())
		s.gaveUp[profiles.Password] = true
		s.gaveUp[profiles.KeyboardInteractive] = true
		return "", err
	}
	return answer, nil
}

// account names whom a question is for, so that no two servers ask the same: the same
// question is put once, and each who asks it gets the answer.
func (s *Session) account() string {
	p := s.profile
	name := p.User + "@" + p.Host
	if p.Port != 22 {
		name = p.User + "@" + net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port)))
	}
	if p.Gateway != nil {
		name += " through " + p.Gateway.Label()
	}
	return name
}

// IsExhausted tells whether a handshake ended because nothing was left to try. The
// trail has the reasons then.
func IsExhausted(err error) bool { return errors.Is(err, errExhausted) }
