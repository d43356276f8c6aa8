package daemon

import (
	"os"
	"os/user"
	"strconv"
	"sync"
	"time"
)

// account is whose flows these are.
type account struct {
	name   string   // the uid in figures where it has none
	groups []string // names; gids in figures where they have none
}

const (
	accountLife = time.Minute // how long an answer of the user database counts
	maxAccounts = 4096        // remembered at once
)

// accounts remembers what the user database says. Safe for concurrent use.
type accounts struct {
	find func(uid uint32) account

	mu    sync.Mutex
	known map[uint32]*knownAccount
}

type knownAccount struct {
	once sync.Once
	account
	until time.Time
}

func newAccounts() *accounts {
	return &accounts{find: accountOf, known: map[uint32]*knownAccount{}}
}

// of returns an account that was looked up a minute ago at most.
func (a *accounts) of(uid uint32) account {
	now := time.Now()
	a.mu.Lock()
	k := a.known[uid]
	if k == nil || now.After(k.until) {
		if k == nil && len(a.known) >= maxAccounts {
			clear(a.known) // so many do not come but in an attack
		}
		k = &knownAccount{until: now.Add(accountLife)}
		a.known[uid] = k
	}
	a.mu.Unlock()
	k.once.Do(func() { k.account = a.find(uid) }) // others wait for this one only
	return k.account
}

// ownAccount is that of this process.
func ownAccount() account {
	u, err := user.Current()
	if err != nil {
		return account{name: strconv.Itoa(os.Getuid())}
	}
	return withGroups(u)
}

// accountOf asks the user database.
func accountOf(uid uint32) account {
	id := strconv.FormatUint(uint64(uid), 10)
	u, err := user.LookupId(id)
	if err != nil {
		return account{name: id}
	}
	return withGroups(u)
}

func withGroups(u *user.User) account {
	a := account{name: u.Username}
	ids, _ := u.GroupIds()
	for _, id := range ids {
		name := groupName(id)
		if name == "" {
			name = id
		}
		a.groups = append(a.groups, name)
	}
	return a
}

// accountNamed finds an account by its name, or its uid in figures.
func accountNamed(name string) account {
	if u, err := user.Lookup(name); err == nil {
		if uid, err := strconv.ParseUint(u.Uid, 10, 32); err == nil {
			return accountOf(uint32(uid))
		}
	}
	if uid, err := strconv.ParseUint(name, 10, 32); err == nil {
		return accountOf(uint32(uid))
	}
	return account{name: name}
}

// userName and groupName find the name of an account by its number, "" for none.
func userName(id string) string {
	u, err := user.LookupId(id)
	if err != nil {
		return ""
	}
	return u.Username
}

func groupName(id string) string {
	g, err := user.LookupGroupId(id)
	if err != nil {
		return ""
	}
	return g.Name
}
