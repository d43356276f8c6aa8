package gwconfig

import "testing"

func TestEx(t *testing.T) {
	c, err := Load("../../../etc/ssh-gateway.yaml")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", c.Limits)
	t.Log(c.Warnings)
}
