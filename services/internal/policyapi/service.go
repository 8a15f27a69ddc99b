// Package policyapi serves PolicyService and PolicyFeed over policyd's store,
// compiler and feed.
package policyapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/analyze"
	"github.com/testudo-ipsec/testudo/policyd/compile"
	"github.com/testudo-ipsec/testudo/policyd/model"
	"github.com/testudo-ipsec/testudo/policyd/store"
	ipsecv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/ipsec/v1"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
	"github.com/testudo-ipsec/testudo/services/internal/convert"
	"github.com/testudo-ipsec/testudo/services/internal/rpc"
)

// Service implements policyv1.PolicyServiceServer.
type Service struct {
	policyv1.UnimplementedPolicyServiceServer
	Keeper *Keeper
}

// plan is what a change would lead to.
type plan struct {
	next     state
	change   store.Change
	problems []*policyv1.Problem
	nodes    []string
}

func (p *plan) failed() bool {
	return slices.ContainsFunc(p.problems, func(x *policyv1.Problem) bool { return !x.GetWarning() })
}

func (p *plan) add(err error) {
	var list model.Errors
	if !errors.As(err, &list) {
		p.problems = append(p.problems, &policyv1.Problem{Message: err.Error()})
		return
	}
	for _, e := range list {
		p.problems = append(p.problems, &policyv1.Problem{File: e.Pos.File, Line: uint32(e.Pos.Line), Field: e.Field, Message: e.Text})
	}
}

// plan works out what the files, on top of the state or instead of it, lead to.
func (s *Service) plan(base state, files []*policyv1.File, replace bool, remove []string) *plan {
	p := &plan{next: state{snapshot: base.snapshot, docs: map[store.Key]model.Document{}}}
	if !replace {
		maps.Copy(p.next.docs, base.docs)
	}
	seen := map[store.Key]model.Pos{}
	for _, f := range files {
		docs, err := model.Parse(f.GetName(), f.GetContent())
		if err != nil {
			p.add(err)
		}
		for _, d := range docs {
			k := keyOf(d)
			if at, dup := seen[k]; dup {
				p.add(model.Errors{{Pos: d.Pos, Field: "metadata.name", Text: fmt.Sprintf("%s %q is already in %s, want each document once", d.Kind, d.Name, at)}})
				continue
			}
			seen[k] = d.Pos
			p.next.docs[k] = d
		}
	}
	stored := map[store.Key]bool{}
	for _, d := range base.snapshot.Documents {
		stored[d.Key] = true
	}
	removed := map[store.Key]bool{}
	for _, r := range remove {
		kind, name, _ := strings.Cut(r, "/")
		k := store.Key{Kind: kind, Name: name}
		if at, both := seen[k]; both {
			p.add(fmt.Errorf("remove %s: it is in %s too; want one or the other", r, at))
			continue
		}
		if !stored[k] {
			p.add(fmt.Errorf("remove %s: no such document is stored; want Kind/name of one that is", r))
			continue
		}
		removed[k] = true
		delete(p.next.docs, k)
	}
	for _, d := range base.snapshot.Documents {
		k := d.Key
		_, readable := base.docs[k]
		if _, given := seen[k]; !readable && !given && !removed[k] && !replace {
			p.add(fmt.Errorf("stored document %s cannot be read; give it anew or remove it", k))
		}
	}
	if err := p.next.compile(); err != nil {
		p.add(err)
	}
	if p.failed() {
		return p
	}
	var want []store.Document
	for k, d := range p.next.docs {
		want = append(want, store.Document{Key: k, Text: d.Text})
	}
	p.change = base.snapshot.ChangeTo(want)
	p.nodes = differing(base.policies, p.next.policies)
	p.problems = append(p.problems, warnings(p.next)...)
	return p
}

// Validate checks documents and changes nothing.
func (s *Service) Validate(ctx context.Context, r *policyv1.ValidateRequest) (*policyv1.ValidateResponse, error) {
	snap, err := s.Keeper.Store.Get(ctx, 0)
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "the policy store cannot be read: %v", err)
	}
	current, _ := s.Keeper.Current()
	base, _ := compileState(current, snap)
	p := s.plan(base, r.GetFiles(), r.GetReplace(), nil)
	return &policyv1.ValidateResponse{Problems: p.problems, Nodes: p.nodes}, nil
}

// tries bounds how often Apply plans again when others changed the store
// meanwhile.
const tries = 5

// Apply stores documents as one change.
func (s *Service) Apply(ctx context.Context, r *policyv1.ApplyRequest) (*policyv1.ApplyResponse, error) {
	caller, err := rpc.CallerOf(ctx)
	if err != nil {
		return nil, err
	}
	for range tries {
		snap, err := s.Keeper.Store.Get(ctx, 0)
		if err != nil {
			return nil, status.Errorf(codes.Unavailable, "the policy store cannot be read: %v", err)
		}
		if b := r.GetBaseRevision(); b != 0 && b != snap.Version.Revision {
			return nil, status.Errorf(codes.Aborted, "the store is at revision %d, the change was made for %d; look at what changed and apply again", snap.Version.Revision, b)
		}
		current, _ := s.Keeper.Current()
		// When what is stored does not compile, only a change that mends it goes on.
		base, _ := compileState(current, snap)
		p := s.plan(base, r.GetFiles(), r.GetReplace(), r.GetRemove())
		resp := &policyv1.ApplyResponse{Version: convert.ToVersion(snap.Version), Problems: p.problems}
		if p.failed() {
			return resp, nil
		}
		p.change.Author, p.change.Message = caller.String(), r.GetMessage()
		if err := p.change.Check(); err != nil && !errors.Is(err, store.ErrNoChange) {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		v, err := s.Keeper.Store.Put(ctx, p.change)
		var conflict *store.ConflictError
		switch {
		case errors.As(err, &conflict):
			continue
		case errors.Is(err, store.ErrNoChange):
			return resp, nil
		case err != nil:
			return nil, status.Errorf(codes.Unavailable, "the change was not stored: %v", err)
		}
		resp.Version, resp.Nodes = convert.ToVersion(v), p.nodes
		for _, d := range p.change.Put {
			resp.Changed = append(resp.Changed, d.Key.String())
		}
		for _, k := range p.change.Delete {
			resp.Removed = append(resp.Removed, k.String())
		}
		return resp, nil
	}
	return nil, status.Errorf(codes.Aborted, "others changed the policy %d times meanwhile; apply again", tries)
}

// Get returns stored documents.
func (s *Service) Get(_ context.Context, r *policyv1.GetRequest) (*policyv1.GetResponse, error) {
	cur, _ := s.Keeper.Current()
	resp := &policyv1.GetResponse{Version: convert.ToVersion(cur.snapshot.Version)}
	for _, d := range cur.snapshot.Documents {
		if (r.GetKind() == "" || strings.EqualFold(r.GetKind(), d.Kind)) && (r.GetName() == "" || r.GetName() == d.Name) {
			resp.Documents = append(resp.Documents, &policyv1.Document{Kind: d.Kind, Name: d.Name, Content: d.Text})
		}
	}
	if len(resp.Documents) == 0 && r.GetName() != "" {
		return nil, status.Errorf(codes.NotFound, "no %s %q is stored; `testudo policy get` lists what is", r.GetKind(), r.GetName())
	}
	return resp, nil
}

func (s *state) node(name string) (ipsec.NodePolicy, error) {
	if p, ok := s.policies[name]; ok {
		return p, nil
	}
	if s.compiler != nil && s.compiler.Set().Nodes[name] != nil {
		return ipsec.NodePolicy{}, status.Errorf(codes.FailedPrecondition, "node %q is external: it has no policy of ours", name)
	}
	return ipsec.NodePolicy{}, status.Errorf(codes.NotFound, "no node is named %q; `testudo policy get Node` lists them", name)
}

// Effective returns what the compiler made for a node.
func (s *Service) Effective(_ context.Context, r *policyv1.EffectiveRequest) (*policyv1.EffectiveResponse, error) {
	cur, _ := s.Keeper.Current()
	p, err := cur.node(r.GetNode())
	if err != nil {
		return nil, err
	}
	resp := &policyv1.EffectiveResponse{Version: convert.ToVersion(cur.snapshot.Version), Settings: toSettings(compile.SettingsOf(p))}
	for i := range p.Rules {
		resp.Rules = append(resp.Rules, convert.ToRule(&p.Rules[i]))
	}
	for i := range p.Peers {
		resp.Peers = append(resp.Peers, convert.ToPeer(&p.Peers[i]))
	}
	return resp, nil
}

// Status tells how far each subscriber of the feed has come.
func (s *Service) Status(context.Context, *policyv1.StatusRequest) (*policyv1.StatusResponse, error) {
	cur, _ := s.Keeper.Current()
	resp := &policyv1.StatusResponse{Version: convert.ToVersion(cur.snapshot.Version)}
	workers := map[string]*policyv1.SubscriberStatus{}
	for _, st := range s.Keeper.Hub.Status() {
		m := toSubscriber(st)
		if m.GetRole() == roleWorker {
			workers[st.Node] = m
		} else {
			resp.Subscribers = append(resp.Subscribers, m)
		}
	}
	if cur.compiler == nil {
		return resp, nil
	}
	set := cur.compiler.Set()
	for _, name := range set.NodeNames() {
		p := cur.policies[name]
		resp.Nodes = append(resp.Nodes, &policyv1.NodeStatus{
			Node: name, External: set.Nodes[name].External, Rules: uint32(len(p.Rules)), Peers: uint32(len(p.Peers)), Subscriber: workers[name],
		})
	}
	return resp, nil
}

// warnings are what is likely not meant in a state that compiles.
func warnings(s state) []*policyv1.Problem {
	ws, err := analyze.Lint(s.compiler.Set())
	if err != nil {
		return []*policyv1.Problem{{Message: err.Error()}}
	}
	var out []*policyv1.Problem
	for _, w := range ws {
		out = append(out, &policyv1.Problem{File: w.Pos.File, Line: uint32(w.Pos.Line), Message: string(w.Check) + ": " + w.Text, Warning: true})
	}
	return out
}

// passedOver bounds how many rules an explanation lists.
const passedOver = 20

// Explain tells which rule a packet meets and why.
func (s *Service) Explain(_ context.Context, r *policyv1.ExplainRequest) (*policyv1.ExplainResponse, error) {
	f, err := convert.FromFlow(r.GetFlow())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	cur, _ := s.Keeper.Current()
	if cur.compiler == nil {
		return nil, status.Error(codes.FailedPrecondition, "no policy is stored yet; `testudo policy apply` stores one")
	}
	node, dir := r.GetNode(), ipsec.Outbound
	if node == "" {
		if node = cur.owner(f.Local); node == "" {
			if node = cur.owner(f.Remote); node == "" {
				return nil, status.Errorf(codes.NotFound, "no node has address %s or %s; name one with --node", f.Local, f.Remote)
			}
			// Seen from the receiver, the packet comes in.
			dir = ipsec.Inbound
			f.Local, f.Remote, f.LocalPort, f.RemotePort = f.Remote, f.Local, f.RemotePort, f.LocalPort
		}
	}
	if _, err := cur.node(node); err != nil {
		return nil, err
	}
	c, err := cur.compiler.Node(node)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	e := analyze.Explain(c, f, dir)
	resp := &policyv1.ExplainResponse{Node: node, Action: ipsecv1.Action(e.Action), Version: convert.ToVersion(cur.snapshot.Version)}
	if e.Rule == nil {
		resp.Why = fmt.Sprintf("none of the node's %d rules matches, so its default decides", len(e.Rules))
	} else {
		resp.Rule = convert.ToRule(e.Rule)
		for _, c := range e.Rules {
			if c.Why == analyze.WhyDecides {
				resp.Why = fmt.Sprintf("it is the heaviest rule that matches; %s and %s made it", c.Origin.Rule, c.Origin.Filter)
			}
		}
	}
	for _, c := range e.Rules {
		if len(resp.GetPassedOver()) == passedOver {
			resp.PassedOver = append(resp.PassedOver, fmt.Sprintf("and %d more", len(e.Rules)-passedOver))
			break
		}
		if c.Why != analyze.WhyDecides {
			resp.PassedOver = append(resp.PassedOver, c.Rule.Name+": "+string(c.Why))
		}
	}
	return resp, nil
}

// owner is the node that has an address or protects it; "" for none.
func (s *state) owner(a netip.Addr) string {
	set, behind := s.compiler.Set(), ""
	for _, name := range set.NodeNames() {
		n := set.Nodes[name]
		if n.External {
			continue
		}
		if slices.Contains(n.Addresses, a) {
			return name
		}
		if slices.ContainsFunc(n.Protects, func(p netip.Prefix) bool { return p.Contains(a) }) {
			behind = name
		}
	}
	return behind
}
