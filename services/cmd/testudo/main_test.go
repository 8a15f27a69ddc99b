package main

import (
	"io"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/testudo-ipsec/testudo/services/internal/rpc"
)

// What an operator gets wrong is answered with what was got, what was wanted, and
// what to do.
func TestMistakesAreAnswered(t *testing.T) {
	socket := "unix://" + filepath.Join(t.TempDir(), "nobody.sock")
	for command, want := range map[string]string{
		"sa lst":           `"lst" is not a command of "testudo sa": want one of those that "testudo sa --help" lists, such as list`,
		"explain 10.0.0.1": "accepts between 2 and 4 arg(s), received 1; want: testudo explain SRC DST [PROTOCOL [PORT]]",
		"status -o xml":    `"xml"`,
		"status": "policyd does not answer at " + socket + ": dial unix " + strings.TrimPrefix(socket, "unix://") +
			": connect: no such file or directory; start it, or say where it is with --policyd or TESTUDO_POLICYD",
		"sa list":       "keymgrd does not answer at " + socket,
		"ike watch":     "--keymgrd or TESTUDO_KEYMGRD",
		"worker status": "--admin or TESTUDO_WORKERD",
	} {
		args := append(strings.Fields(command), "--policyd", socket, "--keymgrd", socket)
		if strings.HasPrefix(command, "worker") {
			args = append(args, "--admin", socket)
		}
		root := newRoot()
		root.SetArgs(args)
		root.SetOut(io.Discard)
		root.SetErr(io.Discard)
		err := root.Execute()
		if err == nil {
			t.Errorf("testudo %s: no error", command)
			continue
		}
		got := message(err)
		if !strings.Contains(got, want) || strings.Contains(got, "rpc error") || strings.Contains(got, "desc =") {
			t.Errorf("testudo %s:\ngot  %s\nwant %s", command, got, want)
		}
	}
}

// A service that answers that something behind it is away is there itself.
func TestWhatAServiceSaysIsKept(t *testing.T) {
	said := status.Error(codes.Unavailable, "the change was not stored: etcd is away")
	if got := message(unreachable(said, "unix:///x", rpc.RolePolicyd)); got != "the change was not stored: etcd is away" {
		t.Errorf("got %q", got)
	}
}
