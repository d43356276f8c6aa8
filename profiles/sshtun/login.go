package sshtun

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"sshbroker/profiles"
)

// maxLogins bounds the names that are remembered.
const maxLogins = 256

// logins are the user names that people gave for profiles without one, and that the
// server let in. They live as long as the process, so that nobody is asked again
// because a connection was idle.
type logins struct {
	mu    sync.Mutex
	names map[profiles.Key]string
}

func (l *logins) keep(k profiles.Key, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.names == nil || len(l.names) >= maxLogins {
		l.names = make(map[profiles.Key]string)
	}
	l.names[k] = name
}

// ask returns p with a user. Its error is ErrAuth: nobody has told who we are.
func (l *logins) ask(ctx context.Context, p *profiles.Profile, ask profiles.Prompter) (*profiles.Profile, error) {
	named := *p
	l.mu.Lock()
	named.User = l.names[p.Key()]
	l.mu.Unlock()
	if named.User != "" {
		return &named, nil
	}
	if ask == nil {
		return nil, fmt.Errorf("%w: the profile asks for the user name at %s and nobody is there to ask", profiles.ErrAuth, p.Host)
	}
	answer, err := ask.Ask(ctx, profiles.Prompt{Text: fmt.Sprintf("User name at %s: ", p.Host)})
	if err == nil {
		named.User = strings.TrimSpace(answer)
		err = profiles.CheckUser(named.User)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: user name at %s: %w", profiles.ErrAuth, p.Host, err)
	}
	return &named, nil
}
