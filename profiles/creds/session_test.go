package creds

import (
	"log/slog"
	"testing"

	"sshbroker/profiles"
)

// A question that is put once for all who ask the same is never that of two servers.
func TestQuestionsNameTheServer(t *testing.T) {
	inner := &profiles.Profile{User: "ann", Host: "db", Port: 22}
	servers := []profiles.Profile{
		{User: "ann", Host: "gw", Port: 22},
		{User: "ann", Host: "gw", Port: 2222},
		{User: "ann", Host: "gw", Port: 22, Gateway: &profiles.Profile{ID: "north"}},
		{User: "ann", Host: "gw", Port: 22, Gateway: &profiles.Profile{ID: "south"}},
		{User: "ann", Host: "gw", Port: 22, Gateway: inner},
		{User: "ann", Host: "2001:db8::1", Port: 22},
		{User: "ann", Host: "2001:db8::1", Port: 2222},
	}
	want := []string{"ann@gw", "ann@gw:2222", "ann@gw through north", "ann@gw through south", "ann@gw through ann@db:22",
		"ann@2001:db8::1", "ann@[2001:db8::1]:2222"}
	for i := range servers {
		s := NewSession(t.Context(), &servers[i], nil, slog.New(slog.DiscardHandler))
		if got := s.account(); got != want[i] {
			t.Errorf("account %q, want %q", got, want[i])
		}
	}
}
