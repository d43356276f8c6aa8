package config

import (
	"slices"
	"strings"
	"testing"
)

func testEnv() Env {
	return Env{Home: "/home/ann", User: "ann", Group: "staff", UID: 1001, GID: 50,
		Environ: []string{"HOST_A=alpha", "lower=l", "EMPTY=", "SSH_AUTH_SOCK=/run/agent", "G=env-g", "percent=100%U", "Mixed=m"}}
}

func TestExpand(t *testing.T) {
	tests := []struct {
		in, want string
		unset    string // names, with a space between them
	}{
		{"", "", ""},
		{"plain", "plain", ""},

		{"%HOST_A%", "alpha", ""},
		{"%host_a%x", "alphax", ""},
		{"%MIXED%", "m", ""},
		{"%NONE%", "%NONE%", ""},
		{"%NONE%HOST_A%", "%NONEalpha", ""},
		{"100%", "100%", ""},
		{"%%", "%%", ""},
		{"%", "%", ""},
		{"%EMPTY%.", ".", ""},

		{"%U", "ann", ""},
		{"%U@%D", "ann@/home/ann", ""},
		{"%U%G", "annstaff", ""},
		{"%U%D%IU", "ann/home/ann1001", ""},
		{"%IU:%IG", "1001:50", ""},
		{"%G", "staff", ""},
		{"%u", "%u", ""},
		{"%Ux", "%Ux", ""},
		{"%D/.ssh2/%U.key", "/home/ann/.ssh2/ann.key", ""},

		{"%username%", "ann", ""},
		{"%UserName%", "ann", ""},
		{"%username-without-domain%", "ann", ""},
		{"%groupname%/%homedir%/%userid%/%GROUPID%", "staff//home/ann/1001/50", ""},
		{"%USER_CONFIG_DIRECTORY%", "%USER_CONFIG_DIRECTORY%", ""},

		{"$HOST_A", "alpha", ""},
		{"$HOST_A.example", "alpha.example", ""},
		{"$HOST_Ax", "", "HOST_Ax"},
		{"$host_a", "", "host_a"},
		{"$lower-$lower", "l-l", ""},
		{"$U:$username:$homedir", "ann:ann:/home/ann", ""},
		{"$G", "env-g", ""}, // the environment wins
		{"$", "$", ""},
		{"a$.b", "a$.b", ""},

		{"${HOST_A}text", "alphatext", ""},
		{"${NONE}text", "text", "NONE"},
		{"${NONE:-default}", "default", ""},
		{"${NONE:-}", "", ""},
		{"${EMPTY:-default}", "", ""}, // set, if to nothing
		{"${HOST_A:-default}", "alpha", ""},
		{"${U}", "ann", ""},
		{"$NONE$OTHER", "", "NONE OTHER"},

		{"$percent", "100%U", ""}, // not expanded again
		{"ü%Uü", "üannü", ""},
	}
	for _, tt := range tests {
		got := testEnv().Expand(tt.in)
		if got.Text != tt.want || strings.Join(got.Unset, " ") != tt.unset || got.Err != nil {
			t.Errorf("%q is %q, unset %q, error %v; want %q, unset %q", tt.in, got.Text, got.Unset, got.Err, tt.want, tt.unset)
		}
	}
}

func TestExpandErrors(t *testing.T) {
	for in, offset := range map[string]int{"${": 0, "x${}": 1, "a${NAME": 1, "${NAME-x}": 0, "${NAME:x}": 0, "$U${A B}": 2} {
		if got := testEnv().Expand(in); got.Err == nil || got.Err.Offset != offset {
			t.Errorf("%q: %+v, want an error at %d", in, got, offset)
		}
	}
}

// An empty Env knows nothing, and looks nowhere else.
func TestExpandNothing(t *testing.T) {
	t.Setenv("HOST_A", "outside")
	got := Env{}.Expand("%U %D %username% $HOST_A %HOST_A% ${HOST_A}")
	if want := "%U %D %username%  %HOST_A% "; got.Text != want || !slices.Equal(got.Unset, []string{"HOST_A", "HOST_A"}) {
		t.Errorf("got %q, unset %q; want %q", got.Text, got.Unset, want)
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"%U%G", "${NONE:-x}", "%username-without-domain%", "$", "${", "%%U%%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := testEnv().Expand(s)
		if got.Err != nil && (got.Err.Offset < 0 || got.Err.Offset >= len(s)) {
			t.Fatalf("error at %d of %q", got.Err.Offset, s)
		}
		if !strings.ContainsAny(s, "%$") && got.Text != s {
			t.Fatalf("%q became %q", s, got.Text)
		}
	})
}

// Each special variable in every form; and the environment wins where it has a
// variable of that name, in the case that the form looks for.
func TestSpecialVariables(t *testing.T) {
	for _, v := range []struct{ short, long, want string }{
		{"U", "username", "ann"}, {"G", "groupname", "staff"}, {"D", "homedir", "/home/ann"}, {"IU", "userid", "1001"}, {"IG", "groupid", "50"},
	} {
		env := testEnv()
		env.Environ = nil
		upper := strings.ToUpper(v.long)
		for _, form := range []string{"%" + v.short, "$" + v.short, "${" + v.short + "}", "${" + v.short + ":-x}",
			"%" + v.long + "%", "%" + upper + "%", "$" + v.long, "$" + upper, "${" + v.long + "}", "${" + upper + ":-x}"} {
			if got := env.Expand(form + "/y"); got.Text != v.want+"/y" || got.Unset != nil || got.Err != nil {
				t.Errorf("%s is %+v, want %s", form, got, v.want)
			}
		}
		env.Environ = []string{upper + "=from-env", "OTHER=x"}
		for form, want := range map[string]string{
			"%" + v.long + "%": "from-env", "%" + upper + "%": "from-env", "$" + upper: "from-env", "${" + upper + "}": "from-env",
			"$" + v.long: v.want, "${" + v.long + "}": v.want, "%" + v.short: v.want,
		} {
			if got := env.Expand(form); got.Text != want {
				t.Errorf("%s beside %s=from-env is %q, want %q", form, upper, got.Text, want)
			}
		}
	}
	env := testEnv()
	env.Environ = []string{"U=from-env"}
	for form, want := range map[string]string{"$U": "from-env", "${U}": "from-env", "%U%": "from-env", "%U": "ann"} {
		if got := env.Expand(form); got.Text != want {
			t.Errorf("%s beside U=from-env is %q, want %q", form, got.Text, want)
		}
	}
}
