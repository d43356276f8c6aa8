package gwconfig

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Whatever is in a file, it is read or refused with a place and words; what is read makes
// services that decide without a panic, and means the same as JSON.
func FuzzParse(f *testing.F) {
	for _, name := range append(brokenFiles(f), "testdata/warnings.yaml", "../../../etc/ssh-gateway.yaml") {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, filepath.Ext(name) == ".json")
	}
	f.Fuzz(func(t *testing.T, data []byte, isJSON bool) {
		name := "f.yaml"
		if isJSON {
			name = "f.json"
		}
		c, err := Parse(name, data)
		if err != nil {
			problems, ok := errors.AsType[Problems](err)
			if !ok || len(problems) == 0 || c != nil {
				t.Fatalf("%v, %v", c, err)
			}
			lines := strings.Count(string(data), "\n") + 1
			for _, p := range problems {
				if p.Warning || p.Msg == "" || p.Pos.Line < 0 || !strings.ContainsAny(string(data), "\r\u0085\u2028\u2029") && p.Pos.Line > lines {
					t.Errorf("%+v", p)
				}
			}
			return
		}
		if isJSON && !json.Valid(data) {
			t.Error("what is not JSON is read as JSON")
		}
		if len(c.Services) == 0 || len(c.Listen) == 0 || len(c.ClientCAs) == 0 || len(c.Certificates) == 0 {
			t.Errorf("%+v", c)
		}
		for _, s := range c.Services {
			for _, host := range []string{"", "a.example.com", "127.0.0.1", "::1", "169.254.169.254"} {
				route, v := s.Decide(t.Context(), &alice, host, 443, resolver{})
				if v.Allowed() != (len(route.Addrs) > 0) {
					t.Errorf("%v, %v", v, route)
				}
			}
			if s.Admit(nil).Allowed() {
				t.Error("nobody is admitted")
			}
		}
	})
}
