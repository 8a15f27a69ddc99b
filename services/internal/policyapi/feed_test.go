package policyapi_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/feed"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
	"github.com/testudo-ipsec/testudo/services/internal/config"
	"github.com/testudo-ipsec/testudo/services/internal/pki"
	"github.com/testudo-ipsec/testudo/services/internal/policyapi"
	"github.com/testudo-ipsec/testudo/services/internal/rpc"
)

func TestSubscribersGetWhatIsTheirs(t *testing.T) {
	r := newRig(t)
	red, all := r.subscribe("worker", "red", "red", ""), r.subscribe("keymgr", "k", "", "")
	r.apply(&policyv1.ApplyRequest{Files: files(base)})
	red.at(t, 1)
	all.at(t, 1)
	if red.rules("red") == "-" || red.rules("blue") != "-" || all.rules("red") != red.rules("red") || all.rules("blue") == "-" {
		t.Errorf("red has %q and of blue %q; the key manager %q and %q", red.rules("red"), red.rules("blue"), all.rules("red"), all.rules("blue"))
	}
	eventually(t, "policyd knows", func() bool {
		w, k := r.status("red"), r.status("k")
		return w.GetInSync() && w.GetConnected() && w.GetRole() == "worker" && w.GetAckedRevision() == 1 && k.GetInSync() && k.GetRole() == "keymgr"
	})
	if _, fromFile := red.Revision(); fromFile || !red.Connected() {
		t.Errorf("got from file %t, connected %t", fromFile, red.Connected())
	}
	// What is of no concern to red is not sent to it.
	r.apply(&policyv1.ApplyRequest{Files: files(blocking("b", 1))})
	all.at(t, 2)
	if rev, _ := red.Revision(); rev != 1 {
		t.Errorf("red was sent revision %d", rev)
	}
	// A node that policy no longer speaks of has none.
	r.apply(&policyv1.ApplyRequest{Files: files(blocking("b", 1)), Replace: true})
	red.at(t, 3)
	all.at(t, 3)
	if red.rules("red") != "-" || all.rules("red") != "-" || all.rules("b") == "-" {
		t.Errorf("left: %q, %q, %q", red.rules("red"), all.rules("red"), all.rules("b"))
	}
	all.stop()
	eventually(t, "policyd notices who leaves", func() bool { return !r.status("k").GetConnected() })
}

func TestARefusedDeltaLeavesThePolicyInForce(t *testing.T) {
	r := newRig(t)
	all := r.subscribe("keymgr", "k", "", "")
	r.apply(&policyv1.ApplyRequest{Files: files(base, blocking("a", 1))})
	all.at(t, 1)
	blue, red := all.rules("blue"), all.rules("red")

	// One delta changes a, blue and red. It fails at red, when a and blue are
	// done already: all of it must be taken back.
	all.refuses("red", "no room for another rule")
	change := strings.NewReplacer("name: all,", "name: every,", "name: r,", "name: s,").Replace(base + "---\n" + blocking("a", 1))
	r.apply(&policyv1.ApplyRequest{Files: files(change)})
	eventually(t, "the refusal arrives", func() bool { return r.status("k").GetLastNack() != "" })
	if nack := r.status("k").GetLastNack(); !strings.Contains(nack, "red") || !strings.Contains(nack, "no room for another rule") {
		t.Errorf("got %q", nack)
	}
	if all.rules("red") != red || r.status("k").GetInSync() {
		t.Errorf("red uses %q, want %q; in sync %t", all.rules("red"), red, r.status("k").GetInSync())
	}
	// The others are not held up by red.
	eventually(t, "the rest of the delta comes without red", func() bool { return all.rules("blue") != blue && strings.Contains(all.rules("a"), "a/s") })
	if all.rules("red") != red {
		t.Errorf("red uses %q, want %q", all.rules("red"), red)
	}

	all.refuses("red", "")
	again := strings.ReplaceAll(base, "name: all,", "name: each,")
	r.apply(&policyv1.ApplyRequest{Files: files(again)})
	eventually(t, "red follows again", func() bool { s := r.status("k"); return s.GetInSync() && s.GetLastNack() == "" })
	if !strings.Contains(all.rules("red"), "p/each") {
		t.Errorf("red uses %q", all.rules("red"))
	}
}

// firstDelta is the first delta that a subscriber gets who has something already.
func firstDelta(t *testing.T, r *rig, have []*policyv1.ResourceVersion) *policyv1.SubscribeResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx(), 10*time.Second)
	defer cancel()
	st, err := policyv1.NewPolicyFeedClient(r.conn).Subscribe(ctx, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Subscription{Subscription: &policyv1.Subscription{
		Subscriber: "counter", Role: "keymgr", Have: have,
	}}}); err != nil {
		t.Fatal(err)
	}
	d, err := st.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestAfterAReconnectOnlyDifferencesTravel(t *testing.T) {
	r := newRig(t)
	r.apply(&policyv1.ApplyRequest{Files: files(base, blocking("b", 1))})
	first := firstDelta(t, r, nil)
	var have []*policyv1.ResourceVersion
	for _, x := range first.GetResources() {
		have = append(have, &policyv1.ResourceVersion{Key: x.GetKey(), Version: x.GetVersion()})
	}
	if len(have) < 8 {
		t.Fatalf("only %d resources", len(have))
	}
	r.stop()
	r.start() // another policyd, which has to read the store first
	r.answers()
	if d := firstDelta(t, r, have); len(d.GetResources())+len(d.GetRemoved()) != 0 {
		t.Errorf("nothing changed, and %d resources and %d removals came", len(d.GetResources()), len(d.GetRemoved()))
	}
	r.apply(&policyv1.ApplyRequest{Files: files(strings.Replace(blocking("b", 1), "name: r,", "name: s,", 1))})
	d := firstDelta(t, r, have)
	if len(d.GetResources()) == 0 || len(d.GetResources()) != len(d.GetRemoved()) {
		t.Errorf("a rule was renamed: got %d resources and %d removals", len(d.GetResources()), len(d.GetRemoved()))
	}
	for _, x := range d.GetResources() {
		if x.GetKey().GetNode() != "b" || x.GetKey().GetKind() != "rule" {
			t.Errorf("%v came along", x.GetKey())
		}
	}
}

// The client itself: over restarts of policyd its policy is set once.
func TestTheClientResumes(t *testing.T) {
	r := newRig(t)
	r.apply(&policyv1.ApplyRequest{Files: files(base)})
	red := r.subscribe("worker", "red", "red", "")
	red.at(t, 1)
	for range 2 {
		r.stop()
		eventually(t, "the client notices", func() bool { return !red.Connected() })
		if red.rules("red") == "-" {
			t.Fatal("the policy went with policyd")
		}
		r.start()
		eventually(t, "connected", red.Connected)
		eventually(t, "in sync", func() bool { return r.status("red").GetInSync() })
	}
	if len(red.calls) != 1 {
		t.Errorf("the policy was set %d times", len(red.calls))
	}
}

func TestThePolicyOutlivesARebootWithoutPolicyd(t *testing.T) {
	r := newRig(t)
	r.apply(&policyv1.ApplyRequest{Files: files(base)})
	file := filepath.Join(t.TempDir(), "policy")
	red := r.subscribe("worker", "red", "red", file)
	red.at(t, 1)
	rules := red.rules("red")
	eventually(t, "acknowledged", func() bool { return r.status("red").GetInSync() }) // saved before it is
	red.stop()
	r.stop()
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("got %v, %v", st, err)
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
		t.Errorf("beside the file: %v, %v", left, err)
	}

	back := r.subscribe("worker", "red", "red", file)
	eventually(t, "the file is in force", func() bool { return back.rules("red") == rules })
	if rev, fromFile := back.Revision(); rev != 1 || !fromFile || back.Connected() {
		t.Errorf("got revision %d, from file %t, connected %t", rev, fromFile, back.Connected())
	}
	r.start()
	eventually(t, "in sync", func() bool { return r.status("red").GetInSync() })
	if len(back.calls) != 1 {
		t.Errorf("policyd sent again what the file held: the policy was set %d times", len(back.calls))
	}
	if _, fromFile := back.Revision(); fromFile {
		t.Error("policyd confirmed the policy, and it still counts as the file's")
	}
}

func TestAFileThatCannotBeUsedIsIgnored(t *testing.T) {
	r := newRig(t)
	r.apply(&policyv1.ApplyRequest{Files: files(base)})
	file := filepath.Join(t.TempDir(), "policy")
	red := r.subscribe("worker", "red", "red", file)
	red.at(t, 1)
	eventually(t, "acknowledged", func() bool { return r.status("red").GetInSync() })
	red.stop()
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	check := func(name string, b []byte, node string) {
		t.Helper()
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r.stop()
		w := r.subscribe("worker", node, node, file)
		r.start()
		eventually(t, name+": in sync", func() bool { return r.status(node).GetInSync() })
		w.stop()
		for _, n := range w.calls {
			if n != node {
				t.Errorf("%s: the policy of %s was used", name, n)
			}
		}
		if len(w.calls) != 1 || w.rules(node) == "-" {
			t.Errorf("%s: policy set %d times, now %q", name, len(w.calls), w.rules(node))
		}
	}
	check("empty", nil, "red")
	check("garbage", []byte("garbage"), "red")
	check("cut off", good[:len(good)-10], "red")
	check("longer", append(good[:len(good):len(good)], 0), "red")
	// A bit in the middle: without a checksum most of these would still parse,
	// and be taken for the version that they say they are.
	for i := 60; i < len(good); i += len(good) / 10 {
		flipped := append([]byte(nil), good...)
		flipped[i] ^= 4
		check("flipped bit", flipped, "red")
	}
	// The host was renamed: red's file is not blue's policy.
	check("of another node", good, "blue")
}

func TestAFileThatCannotBeWrittenDoesNotStopAnything(t *testing.T) {
	r := newRig(t)
	r.apply(&policyv1.ApplyRequest{Files: files(base)})
	red := r.subscribe("worker", "red", "red", filepath.Join(t.TempDir(), "missing", "policy"))
	red.at(t, 1)
	eventually(t, "acknowledged", func() bool { return r.status("red").GetInSync() })
}

func TestWhoMaySubscribeToWhat(t *testing.T) {
	dir := t.TempDir()
	ca, _, err := pki.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(role rpc.Role, name string) config.TLS {
		file := string(role) + name
		if err := ca.Issue(file, rpc.Caller{Role: role, Name: name}); err != nil {
			t.Fatal(err)
		}
		return config.TLS{CA: dir + "/ca.pem", Cert: dir + "/" + file + ".pem", Key: dir + "/" + file + "-key.pem"}
	}
	r := newRig(t)
	hub := &feed.Hub{}
	defer hub.Close()
	s, err := rpc.Listen(r.log, []string{"127.0.0.1:0"}, issue(rpc.RolePolicyd, "p"), rpc.PolicydAllow, func(reg grpc.ServiceRegistrar) {
		policyv1.RegisterPolicyFeedServer(reg, &policyapi.Feed{Hub: hub})
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(r.ctx())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() { cancel(); <-done }() //nolint:errcheck // it ends because ctx does
	hub.Publish(ipsec.Version{Cluster: "c", Epoch: 1, Revision: 1}, nil)

	worker, keymgr, operator := issue(rpc.RoleWorker, "red"), issue(rpc.RoleKeymgrd, "k"), issue(rpc.RoleOperator, "eve")
	key := func(node string) []*policyv1.ResourceVersion {
		return []*policyv1.ResourceVersion{{Key: &policyv1.ResourceKey{Node: node, Kind: "rule", Name: "x"}, Version: "1"}}
	}
	for _, tt := range []struct {
		name  string
		files config.TLS
		sub   *policyv1.Subscription
		code  codes.Code
	}{
		{"a worker, to its node", worker, &policyv1.Subscription{Role: "worker", Subscriber: "red", Node: "red"}, codes.OK},
		{"a worker, to another node", worker, &policyv1.Subscription{Role: "worker", Subscriber: "blue", Node: "blue"}, codes.PermissionDenied},
		{"a worker, under another name", worker, &policyv1.Subscription{Role: "worker", Subscriber: "blue", Node: "red"}, codes.PermissionDenied},
		{"a worker, to all", worker, &policyv1.Subscription{Role: "worker", Subscriber: "red"}, codes.PermissionDenied},
		{"a worker, as key manager", worker, &policyv1.Subscription{Role: "keymgr", Subscriber: "red"}, codes.PermissionDenied},
		{"a key manager, to all", keymgr, &policyv1.Subscription{Role: "keymgr", Subscriber: "k"}, codes.OK},
		{"a key manager, under another name", keymgr, &policyv1.Subscription{Role: "keymgr", Subscriber: "l"}, codes.PermissionDenied},
		{"a key manager, as worker", keymgr, &policyv1.Subscription{Role: "worker", Subscriber: "k", Node: "k"}, codes.PermissionDenied},
		{"an operator", operator, &policyv1.Subscription{Role: "worker", Subscriber: "eve", Node: "eve"}, codes.PermissionDenied},
		{"no role", worker, &policyv1.Subscription{Subscriber: "red", Node: "red"}, codes.InvalidArgument},
		{"nothing", worker, nil, codes.InvalidArgument},
		{"with another node's resources", worker, &policyv1.Subscription{Role: "worker", Subscriber: "red", Node: "red", Have: key("blue")}, codes.InvalidArgument},
	} {
		conn, err := rpc.Dial(s.Addresses()[0], rpc.RolePolicyd, tt.files)
		if err != nil {
			t.Fatal(err)
		}
		st, err := policyv1.NewPolicyFeedClient(conn).Subscribe(ctx)
		if err == nil {
			if err = st.Send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Subscription{Subscription: tt.sub}}); err == nil {
				_, err = st.Recv()
			}
		}
		if status.Code(err) != tt.code {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.code)
		}
		_ = conn.Close()
	}
}

func TestAnAnswerToNothingEndsTheStream(t *testing.T) {
	r := newRig(t)
	r.apply(&policyv1.ApplyRequest{Files: files(base)})
	for name, m := range map[string]*policyv1.SubscribeRequest{
		"an ack of nothing":    {Message: &policyv1.SubscribeRequest_Ack{Ack: 99}},
		"a refusal of nothing": {Message: &policyv1.SubscribeRequest_Nack{}},
		"another subscription": {Message: &policyv1.SubscribeRequest_Subscription{}},
		"nothing":              {},
	} {
		st, err := policyv1.NewPolicyFeedClient(r.conn).Subscribe(r.ctx())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []*policyv1.SubscribeRequest{{Message: &policyv1.SubscribeRequest_Subscription{Subscription: &policyv1.Subscription{Role: "keymgr", Subscriber: "k"}}}, m} {
			if err := st.Send(m); err != nil {
				t.Fatal(err)
			}
		}
		for err == nil {
			_, err = st.Recv()
		}
		if c := status.Code(err); c != codes.InvalidArgument && c != codes.FailedPrecondition {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
