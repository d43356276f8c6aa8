package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestLoad runs every kind of job once and looks at its answer.
func TestLoad(t *testing.T) {
	address, greeter := startServer(t, "target"), startServer(t, "target", "-greet")
	ending, turns := startServer(t, "target", "-end"), startServer(t, "target", "-turns")
	for _, test := range []struct {
		jobs string
		want func(r loadResult) bool // of the last job
	}{
		{"up 2 20", func(r loadResult) bool { return r.Bytes > 0 && r.Seconds >= 0.02 }},
		{"down 2 20", func(r loadResult) bool { return r.Bytes > 0 && r.Seconds >= 0.02 }},
		{"echo 20", func(r loadResult) bool { return r.Count > 0 && r.P50 > 0 && r.P99 >= r.P50 }},
		{"beside up 200 20", func(r loadResult) bool { return r.Count > 0 && r.P95 >= r.P50 && r.Bytes > 0 }},
		{"beside down 200 20", func(r loadResult) bool { return r.Count > 0 && r.P95 >= r.P50 && r.Bytes > 0 }},
		{"connect 2 20", func(r loadResult) bool { return r.Count > 0 && r.Seconds >= 0.02 && r.P50 > 0 && r.P99 >= r.P50 }},
		{"greeted 2 20", func(r loadResult) bool { return r.Count > 0 && r.P50 > 0 && r.P99 >= r.P50 }},
		{"hold 5", func(r loadResult) bool { return r.Count == 5 }},
		{"hold 5\nhold 3\nrelease", func(r loadResult) bool { return r.Count == 8 }},
		{"release", func(r loadResult) bool { return r.Count == 0 }},
		{"hold 3\ntouch", func(r loadResult) bool { return r.Count == 3 }},
		{"turns 20 " + turns, func(r loadResult) bool { return r.Count > 0 && r.Seconds >= 0.02 }},
		{"opens 20 " + ending, func(r loadResult) bool { return r.Count > 0 && r.Seconds >= 0.02 && r.P50 > 0 && r.P99 >= r.P50 }},
		{"paced 2 21 " + ending, func(r loadResult) bool { return r.Count == 11 && r.P50 > 0 && r.P99 >= r.P50 }},
		{"rush 1000 50 " + address + " 127.0.0.1:1", func(r loadResult) bool {
			return r.Count > 0 && r.Outcomes["ok"] == r.Count && r.Outcomes["ECONNREFUSED"] > 0 && len(r.Outcomes) == 2
		}},
	} {
		var out strings.Builder
		if err := run(t.Context(), []string{"load", address, greeter}, strings.NewReader(test.jobs+"\n"), &out); err != nil {
			t.Errorf("%q: %v", test.jobs, err)
			continue
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		var r loadResult
		if err := json.Unmarshal([]byte(lines[max(0, len(lines)-2)]), &r); err != nil || r.Error != "" || !test.want(r) {
			t.Errorf("%q: %v, printed %q", test.jobs, err, out.String())
		}
	}
}

// TestLoadFails keeps a job that failed from being taken for a measurement.
func TestLoadFails(t *testing.T) {
	var out strings.Builder
	jobs := "up 1 20\necho 20\nbeside up 20 20\nbeside in 20 20\nbeside up 20\nconnect 1 20\ngreeted 1 20\nhold 1\ndance\nup 0 1\n" +
		"turns 20 127.0.0.1:1\nopens 20 127.0.0.1:1\npaced 1 20 127.0.0.1:1\npaced 1 20\nrush 0 20 127.0.0.1:1\n"
	if err := run(t.Context(), []string{"load", "127.0.0.1:1", "127.0.0.1:1"}, strings.NewReader(jobs), &out); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Count(out.String(), `{"error":`), strings.Count(jobs, "\n"); got != want {
		t.Errorf("%d errors, want %d:\n%s", got, want, out.String())
	}
}
