package rpc

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// The kernel names the user of the test; a server of another user refuses it.
func TestASocketIsForRootAndTheDaemonsUser(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var asked uint32
	_, _, err = localCredentials{allow: func(uid uint32) bool { asked = uid; return false }}.ServerHandshake(s)
	if err == nil || !strings.Contains(err.Error(), "may not use this socket") {
		t.Errorf("user %d: got %v", asked, err)
	}
	_, info, err := localCredentials{allow: func(uid uint32) bool { return uid == asked }}.ServerHandshake(s)
	if err != nil || info.(localInfo).uid != asked {
		t.Errorf("got %+v, %v", info, err)
	}
}

func TestLocalCredentialsTakeNoTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, _, err := (localCredentials{allow: func(uint32) bool { return true }}).ServerHandshake(s); err == nil {
		t.Error("a TCP connection passed for a local one")
	}
}

func TestNoIdentityIsNoCaller(t *testing.T) {
	if err := (Allow{"/m": {RoleOperator}}).check(context.Background(), "/m"); err == nil {
		t.Error("a call without a connection was let in")
	}
}

func TestWhoMaySpeakForANode(t *testing.T) {
	for _, tt := range []struct {
		c    Caller
		want bool
	}{
		{Caller{RoleWorker, "web-1"}, true}, {Caller{RoleWorker, "web-2"}, false}, {Caller{RoleWorker, "web-1/x"}, false},
		{Caller{RoleLocal, "uid-0"}, true},
	} {
		if got := tt.c.Is("web-1"); got != tt.want {
			t.Errorf("%s speaks for web-1: got %t", tt.c, got)
		}
	}
}
