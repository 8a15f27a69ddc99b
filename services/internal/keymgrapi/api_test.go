package keymgrapi_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
)

func TestInitiateAndList(t *testing.T) {
	r := newRig(t)
	if sas := r.sas(t); len(sas) != 0 {
		t.Fatalf("%d IKE SAs at first", len(sas))
	}
	child := r.initiate(t)
	if child.GetRule() != "rule" || child.GetSpiIn() == 0 || child.GetSpiOut() == 0 || len(child.GetSelectors()) != 1 || child.GetSuite() == "" {
		t.Errorf("initiate answers %v", child)
	}
	sas := r.sas(t)
	if len(sas) != 1 {
		t.Fatalf("%d IKE SAs; want 1", len(sas))
	}
	sa := sas[0]
	if sa.GetNode() != "a" || sa.GetPeer() != "b" || sa.GetVersion() != 2 || !sa.GetInitiator() || sa.GetState() != "established" ||
		sa.GetLocalSpi() == 0 || sa.GetRemoteSpi() == 0 || sa.GetLocal() != "192.0.2.1:500" || sa.GetRemote() != "192.0.2.2:500" ||
		sa.GetLocalId() != "a.example" || sa.GetRemoteId() != "b.example" || sa.GetNat() != "none" || sa.GetRekeyAt() == nil ||
		!strings.Contains(sa.GetSuite(), "x25519") || len(sa.GetChildren()) != 1 || sa.GetChildren()[0].GetId() != child.GetId() {
		t.Errorf("the IKE SA is listed as %v", sa)
	}
	if resp, err := r.ListSas(t.Context(), &keymgrv1.ListSasRequest{Peer: "nobody"}); err != nil || len(resp.GetIkeSas()) != 0 {
		t.Errorf("IKE SAs with nobody: %v, %v", resp, err)
	}
	all, err := r.ListSas(t.Context(), &keymgrv1.ListSasRequest{})
	if err != nil || len(all.GetIkeSas()) != 2 {
		t.Errorf("both ends are listed as %v, %v", all, err)
	}
	b, err := protojson.Marshal(all)
	if err != nil || strings.Contains(string(b), pskOctets) {
		t.Errorf("the list shows a key, or %v", err)
	}
}

func TestInitiateSaysWhyNot(t *testing.T) {
	r := newRig(t)
	for _, tt := range []struct {
		name string
		req  *keymgrv1.InitiateRequest
		code codes.Code
		text string
	}{
		{"no such rule", &keymgrv1.InitiateRequest{Node: "a", Rule: "none"}, codes.FailedPrecondition, "NO_SUCH_RULE"},
		{"no such node", &keymgrv1.InitiateRequest{Node: "c", Rule: "rule"}, codes.FailedPrecondition, "NO_POLICY"},
	} {
		if _, err := r.Initiate(t.Context(), tt.req); status.Code(err) != tt.code || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v; want %s with %s", tt.name, err, tt.code, tt.text)
		}
	}
	// The other end is gone: nobody answers.
	delete(r.workers, addresses["b"])
	_, err := r.Initiate(t.Context(), &keymgrv1.InitiateRequest{Node: "a", Rule: "rule", Timeout: durationpb.New(50 * time.Millisecond)})
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "testudo ike explain") {
		t.Errorf("nobody answers: %v; want DeadlineExceeded, and what to ask", err)
	}
}

func TestRekeyAndTerminate(t *testing.T) {
	r := newRig(t)
	child := r.initiate(t)
	spi := r.sas(t)[0].GetLocalSpi()
	if _, err := r.Rekey(t.Context(), &keymgrv1.RekeyRequest{Node: "a", Target: &keymgrv1.RekeyRequest_Child{Child: child.GetId()}}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a rekeyed CHILD SA", func() error {
		if sas := r.sas(t); len(sas) != 1 || len(sas[0].GetChildren()) != 1 || sas[0].GetChildren()[0].GetRekeyed() != 1 {
			return errNow("%v", sas)
		}
		return nil
	})
	if _, err := r.Rekey(t.Context(), &keymgrv1.RekeyRequest{Node: "a", Target: &keymgrv1.RekeyRequest_IkeSpi{IkeSpi: spi}}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "another IKE SA", func() error {
		if sas := r.sas(t); len(sas) != 1 || sas[0].GetLocalSpi() == spi || len(sas[0].GetChildren()) != 1 {
			return errNow("%v", sas)
		}
		return nil
	})
	resp, err := r.Terminate(t.Context(), &keymgrv1.TerminateRequest{Node: "a", Target: &keymgrv1.TerminateRequest_Peer{Peer: "b"}})
	if err != nil || resp.GetClosed() != 1 {
		t.Fatalf("terminate answers %v, %v; want 1 closed", resp, err)
	}
	waitFor(t, "no IKE SA", func() error {
		if n := r.engine.Stats().Machines; n != 0 {
			return errNow("%d", n)
		}
		return nil
	})
	for name, err := range map[string]error{
		"rekey of nothing":     second(r.Rekey(t.Context(), &keymgrv1.RekeyRequest{Node: "a"})),
		"rekey without a node": second(r.Rekey(t.Context(), &keymgrv1.RekeyRequest{Target: &keymgrv1.RekeyRequest_Child{Child: 1}})),
		"terminate of nothing": second(r.Terminate(t.Context(), &keymgrv1.TerminateRequest{Node: "a"})),
	} {
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v; want InvalidArgument", name, err)
		}
	}
	_, err = r.Rekey(t.Context(), &keymgrv1.RekeyRequest{Node: "a", Target: &keymgrv1.RekeyRequest_IkeSpi{IkeSpi: spi}})
	if status.Code(err) != codes.NotFound {
		t.Errorf("rekey of an SA that is gone: %v; want NotFound", err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestListWorkers(t *testing.T) {
	r := newRig(t)
	r.initiate(t)
	waitFor(t, "both workers with their SAs", func() error {
		resp, err := r.ListWorkers(t.Context(), &keymgrv1.ListWorkersRequest{})
		if err != nil {
			return err
		}
		ws := resp.GetWorkers()
		if len(ws) != 2 || ws[0].GetNode() != "a" || !slices.Equal(ws[0].GetAddresses(), []string{"192.0.2.1"}) || ws[0].GetSoftware() != "test" ||
			!ws[0].GetAttached() || ws[0].GetSasDesired() != 2 || ws[0].GetSasInstalled() != 2 || ws[1].GetSasInstalled() != 2 {
			return errNow("%v", ws)
		}
		return nil
	})
	r.workers[addresses["a"]].session.Close()
	resp, err := r.ListWorkers(t.Context(), &keymgrv1.ListWorkersRequest{})
	if err != nil || resp.GetWorkers()[0].GetAttached() {
		t.Errorf("a worker that went away is told as %v, %v", resp, err)
	}
}

// A failure is told as a stream and when asked, with what would have worked.
func TestWatchAndExplain(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	st, err := r.Watch(ctx, &keymgrv1.WatchRequest{Node: "b"})
	if err != nil {
		t.Fatal(err)
	}
	r.engine.SetPolicy("a", policy(t, "a", "aes256gcm16-prfsha384-ecp384"))
	var failed *keymgrv1.WatchResponse
	waitFor(t, "the watch to have begun, and a failure", func() error {
		_, _ = r.Initiate(t.Context(), &keymgrv1.InitiateRequest{Node: "a", Rule: "rule", Timeout: durationpb.New(10 * time.Millisecond)})
		resp, err := r.ExplainFailures(t.Context(), &keymgrv1.ExplainFailuresRequest{Node: "b"})
		if err != nil || len(resp.GetFailures()) == 0 {
			return errNow("%v, %v", resp, err)
		}
		failed, err = st.Recv()
		return err
	})
	f := failed.GetFailure()
	if failed.GetKind() != "failed" || failed.GetNode() != "b" || f.GetWhy() != "NO_PROPOSAL_CHOSEN" || failed.GetDetail() == "" {
		t.Errorf("the event is %v", failed)
	}
	resp, err := r.ExplainFailures(t.Context(), &keymgrv1.ExplainFailuresRequest{Node: "b", Peer: "192.0.2.1"})
	if err != nil || len(resp.GetFailures()) != 1 {
		t.Fatalf("explained as %v, %v", resp, err)
	}
	e := resp.GetFailures()[0]
	// b may take the peer's PRF and group: that is nearest to both.
	if e.GetWhy() != f.GetWhy() || e.GetNearest() != "aes256gcm16-prfsha384-ecp384" || len(e.GetDiff()) != 3 || e.GetRole() != "responder" ||
		len(e.GetOurs()) != 1 || len(e.GetTheirs()) != 1 || e.GetAdvice() == "" || e.GetRepeatedCount() == 0 {
		t.Errorf("explained as %v", e)
	}
	cancel()
	for err == nil {
		_, err = st.Recv()
	}
	if status.Code(err) != codes.Canceled && !errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v", err)
	}
}

func TestTrace(t *testing.T) {
	r := newRig(t)
	r.initiate(t)
	resp, err := r.Trace(t.Context(), &keymgrv1.TraceRequest{Node: "a", Peer: "b"})
	if err != nil || len(resp.GetTraces()) != 1 {
		t.Fatalf("traces %v, %v; want one", resp, err)
	}
	tr := resp.GetTraces()[0]
	var messages []string
	for _, s := range tr.GetSteps() {
		if s.GetWay() != "event" {
			messages = append(messages, s.GetWay()+" "+s.GetWhat())
			if s.GetOctets() < 28 {
				t.Errorf("%s has %d octets", s.GetWhat(), s.GetOctets())
			}
		}
	}
	want := []string{"sent IKE_SA_INIT request 0", "received IKE_SA_INIT response 0", "sent IKE_AUTH request 1", "received IKE_AUTH response 1"}
	if !slices.Equal(messages, want) || tr.GetPeer() != "b" || tr.GetNode() != "a" || tr.GetRemote() != "192.0.2.2:500" || tr.GetId() == 0 {
		t.Errorf("trace %v", tr)
	}
	if resp, err := r.Trace(t.Context(), &keymgrv1.TraceRequest{Limit: 1}); err != nil || len(resp.GetTraces()) != 1 {
		t.Errorf("the last of two traces: %v, %v", resp, err)
	}
	b, err := protojson.Marshal(resp)
	if err != nil || strings.Contains(string(b), pskOctets) {
		t.Errorf("the trace shows a key, or %v", err)
	}
}
