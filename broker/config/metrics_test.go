package config

import (
	"testing"
	"time"
)

func TestMetrics(t *testing.T) {
	for _, tt := range []struct {
		name, global, user string
		want               Metrics
	}{
		{"none", "", "", Metrics{}},
		{"for ssh-broker-ctl alone", "", "<metrics/>", Metrics{On: true, Interval: 15 * time.Second}},
		{"all", "", `<metrics socket="m" listen="[::1]:9464" textfile="~/%U.prom" interval="60"/>`,
			Metrics{On: true, Socket: "/home/ann/.ssh2/m", Listen: "[::1]:9464", Textfile: "/home/ann/ann.prom", Interval: time.Minute}},
		{"global", `<metrics listen="127.0.0.1:1"/>`, "", Metrics{On: true, Listen: "127.0.0.1:1", Interval: 15 * time.Second}},
		{"the user's replaces it", `<metrics listen="127.0.0.1:1" interval="3"/>`, `<metrics socket="/m"/>`, Metrics{On: true, Socket: "/m", Interval: 15 * time.Second}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := func(in string) string {
				return write(t, "c.xml", `<secsh-broker version="1.0"><general>`+in+`</general></secsh-broker>`)
			}
			c, err := Load(Options{GlobalFile: file(tt.global), File: file(tt.user), Env: testEnv()})
			if err != nil {
				t.Fatal(err)
			}
			if c.Metrics != tt.want {
				t.Errorf("\n got %+v\nwant %+v", c.Metrics, tt.want)
			}
		})
	}
	for _, bad := range []string{`listen="0.0.0.0:9464"`, `listen="[::]:1"`, `listen=":9464"`, `listen="127.0.0.1:0"`, `listen="127.0.0.1"`, `textfile="/x.txt"`, `interval="-1"`} {
		text := `<secsh-broker version="1.0"><general><metrics ` + bad + `/></general></secsh-broker>`
		if _, err := Load(Options{File: write(t, "bad.xml", text), Env: testEnv()}); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}
